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


# --------------------------------------------------------------------------------- broadcasting and dtypes


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


# -------------------------------------------------------------------------------------------------- errors

_X = torch.zeros(3, 5)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize(
    ("op", "error", "message", "change"),
    [
        ("mse_loss", ValueError, "reduction must be", {"reduction": "meen"}),
        ("mse_loss", TypeError, "target must be a Tensor, got list", {"target": [0.0]}),
        ("mse_loss", TypeError, "input must be a Tensor, got float", {"input": 0.5}),
        ("mse_loss", TypeError, "input and target must be float", {"input": _X.long(), "target": _X.long()}),
        ("huber_loss", TypeError, "input must be a floating", {"input": _X.long()}),
        ("l1_loss", RuntimeError, "target must be on cpu.*got meta", {"target": _X.to("meta")}),
        ("l1_loss", ValueError, r"weight must have .*\(3, 5\), got \(5,\)", {"weight": torch.ones(5)}),
        ("l1_loss", RuntimeError, "weight must be on cpu.*got meta", {"weight": _X.to("meta")}),
        ("l1_loss", RuntimeError, r"target must broadcast .*\(3, 5\), got \(4,\)", {"target": _X[0, :4]}),
        ("huber_loss", RuntimeError, "delta must be positive, got 0.0", {"delta": 0}),
        ("huber_loss", RuntimeError, "delta must be positive, got nan", {"delta": torch.nan}),
        ("huber_loss", TypeError, "delta must be a number, got str", {"delta": "1"}),
        ("smooth_l1_loss", RuntimeError, "beta must not be negative, got -1.0", {"beta": -1}),
        ("smooth_l1_loss", TypeError, "beta must be a number, got NoneType", {"beta": None}),
        (BCE, ValueError, r"target must have .*\(3, 5\), got \(5,\)", {"target": _X[0]}),
        (BCE, TypeError, "target must be a floating", {"target": _X.long()}),
        (BCE, TypeError, "input must be a floating", {"input": _X.long()}),
        (BCE, RuntimeError, r"weight must broadcast .*got \(3,\)", {"weight": torch.ones(3)}),
        (BCE, RuntimeError, r"pos_weight must broadcast .*got \(1, 3, 5\)", {"pos_weight": _X[None]}),
        (BCE, TypeError, "weight must be a Tensor, got float", {"weight": 0.5}),
        (BCE, RuntimeError, "pos_weight must be on cpu.*got meta", {"pos_weight": _X.to("meta")}),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_bad_argument_is_named(op: str, error: type[Exception], message: str, change: dict) -> None:
    with pytest.raises(error, match=f"{op}: {message}"):
        OPS[op].pyops(**{"input": _X, "target": _X, **change})


_ONE = torch.ones(())
_TENSORS = (_X, _X, _X, 1, torch.ones(5), 1)
_STRIDED = torch.zeros(5, 3).t()


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("forward", {0: _X.long(), 1: _X.long(), 2: None, 4: None}),
        ("forward", {0: _STRIDED}),
        ("forward", {1: _STRIDED}),
        ("forward", {1: torch.zeros(3, 4)}),
        ("forward", {1: _X.double()}),
        ("forward", {2: _X.double()}),
        ("forward", {2: _STRIDED}),
        ("forward", {2: torch.zeros(0)}),
        ("forward", {3: 0}),
        ("forward", {3: -(2**63)}),
        ("forward", {4: torch.zeros(5, dtype=torch.float16)}),
        ("forward", {5: -1}),
        ("forward", {6: -1}),
        ("forward", {6: 5}),
        ("forward", {6: 0}),  # a pos_weight of a difference
        ("forward", {4: None, 6: 2, 7: 0.0}),
        ("forward", {4: None, 6: 3, 7: float("nan")}),
        ("forward", {8: 3}),
        ("backward", {0: torch.ones(3)}),
        ("backward", {0: torch.ones((), dtype=torch.float64)}),
        ("backward", {2: torch.zeros(3, 4)}),
        ("backward", {7: torch.ones(1)}),
        ("backward", {7: torch.ones((), dtype=torch.float16)}),
        ("backward", {10: 0}),  # elements want one upstream gradient each
        ("backward", {11: True}),  # the target's gradient is no difference's
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, change: dict) -> None:
    options = (4, 1.0, 1)
    good = {"forward": (*_TENSORS, *options), "backward": (_ONE, *_TENSORS, _ONE, *options, False)}[op]
    arguments = [change.get(i, a) for i, a in enumerate(good)]
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    moved = checks.on_device(tensors, kernels.device)
    with pytest.raises(RuntimeError, match=f"elementwise_loss_{op}"):
        raw(kernels, f"elementwise_loss_{op}")(*[moved.get(str(i), a) for i, a in enumerate(arguments)])


def test_raw_ops_of_written_gradients_refuse() -> None:
    forward, regrade = raw(CPP, "elementwise_loss_forward_with_grad"), raw(CPP, "elementwise_loss_regrade_")
    for change in ({8: 0}, {0: _X.bfloat16(), 1: _X.bfloat16(), 2: None, 4: None}, {9: True}):
        arguments = [change.get(i, a) for i, a in enumerate((*_TENSORS, 4, 1.0, 1, False))]
        with pytest.raises(RuntimeError, match="elementwise_loss_forward_with_grad"):
            forward(*arguments)
    for arguments in ((_X.clone(), _X), (_X.bfloat16(), _ONE), (_STRIDED, _ONE), (_X, _ONE.double())):
        with pytest.raises(RuntimeError, match="elementwise_loss_regrade_"):
            regrade(*arguments)
