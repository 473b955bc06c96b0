"""What the elementwise losses take and refuse: broadcasting, dtypes, legacy options; errors."""

from __future__ import annotations

import itertools

import pytest
import torch

from pyops import functional as F
from tests.suite import checks
from tests.suite.backends import CPP, THOROUGH, Backend, raw
from tests.suite.cases import REDUCTIONS
from tests.suite.ops.loss import BCE, DIFFERENCES, NAMES, OPS

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("op", DIFFERENCES)
@pytest.mark.parametrize("shapes", [((3, 1), (3, 4)), ((4,), (3, 4)), ((3, 4), ()), ((2, 1, 4), (3, 1))])
def test_broadcasting_with_torchs_warning(backend: Backend, op: str, shapes: tuple) -> None:
    x, y = (torch.randn(s, device=backend.device, requires_grad=True) for s in shapes)
    results = []
    for function in (OPS[op].pyops, OPS[op].torch):
        with pytest.warns(UserWarning, match="different to the input size.*broadcasting") as caught:
            loss = function(x, y)
        assert [w.filename for w in caught] == [__file__]
        results.append((loss, *torch.autograd.grad(loss, (x, y))))
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_weights_of_a_broadcast_input(backend: Backend) -> None:
    x, y = torch.randn(3, 1, device=backend.device), torch.randn(3, 4, device=backend.device)
    weight = torch.rand(3, 1, device=backend.device)
    for op in ("mse_loss", "l1_loss", "huber_loss"):
        torch.testing.assert_close(*(f(x, y, weight=weight) for f in (OPS[op].pyops, OPS[op].torch)))


_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64]


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("reduction", REDUCTIONS[:2])
@pytest.mark.parametrize("op", NAMES)
def test_dtypes_are_promoted_as_in_torch(backend: Backend, op: str, reduction: str) -> None:
    for a, b in itertools.product(_DTYPES, repeat=2):
        x, y = (torch.tensor([0.0, 1.0, 3.0], dtype=d, device=backend.device) for d in (a, b))
        try:
            wanted = OPS[op].torch(x, y, reduction=reduction)
        except RuntimeError:
            with pytest.raises((TypeError, RuntimeError)):
                OPS[op].pyops(x, y, reduction=reduction)
            continue
        found = OPS[op].pyops(x, y, reduction=reduction)
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-2)  # torch rounds in between
        if a.is_floating_point:
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(OPS[op].pyops(x, y, reduction=reduction).sum(), x)
            assert gradient.dtype is a


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("other", _DTYPES)
def test_dtypes_of_weights_as_in_torch(backend: Backend, dtype: torch.dtype, other: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, 3.0], dtype=dtype, device=backend.device)
    y, w = torch.zeros_like(x), torch.tensor([1, 2, 3], dtype=other, device=backend.device)
    for op, factor in [("mse_loss", "weight"), ("l1_loss", "weight"), ("huber_loss", "weight"),
                       (BCE, "weight"), (BCE, "pos_weight")]:  # fmt: skip
        results = [f(x, y, **{factor: w}) for f in (OPS[op].pyops, OPS[op].torch)]
        torch.testing.assert_close(*results, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
def test_complex_l1_loss_is_torchs(backend: Backend) -> None:
    x = torch.randn(3, dtype=torch.complex64, device=backend.device)
    torch.testing.assert_close(F.l1_loss(x, x + 1), torch.nn.functional.l1_loss(x, x + 1))


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("op", ["mse_loss", "l1_loss", "smooth_l1_loss", BCE])
def test_legacy_reduction_arguments_as_in_torch(backend: Backend, op: str) -> None:
    x, y = torch.randn(3, 5, device=backend.device), torch.rand(3, 5, device=backend.device)
    checks.check_legacy_reduction(OPS[op].pyops, OPS[op].torch, x, y)


def test_raw_ops_of_written_gradients_refuse() -> None:
    forward, regrade = raw(CPP, "elementwise_loss_forward_with_grad"), raw(CPP, "elementwise_loss_regrade_")
    x, one, strided = torch.zeros(3, 5), torch.ones(()), torch.zeros(5, 3).t()
    good = (x, x, x, 1, torch.ones(5), 1, 4, 1.0, 1, False)
    for change in ({8: 0}, {0: x.bfloat16(), 2: None, 4: None}, {9: True}):
        arguments = [change.get(i, a) for i, a in enumerate(good)]
        with pytest.raises(RuntimeError, match="elementwise_loss_forward_with_grad"):
            forward(*arguments)
    for arguments in ((x.clone(), x), (x.bfloat16(), one), (strided, one), (x, one.double())):
        with pytest.raises(RuntimeError, match="elementwise_loss_regrade_"):
            regrade(*arguments)
