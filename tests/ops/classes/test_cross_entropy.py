"""cross_entropy: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import pytest
import torch

from pyops.functional import cross_entropy
from tests.suite import checks
from tests.suite.backends import Backend, raw
from tests.suite.cases import DTYPES
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.cross_entropy import RAW_BACKWARD, SMALL
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def test_no_classes(kernels: Backend) -> None:
    """Rows without classes can only be ignored; torch refuses, we give what the formula gives."""
    logits = torch.zeros(3, 0, device=kernels.device, requires_grad=True)
    target = torch.full((3,), -100, device=kernels.device)
    loss = cross_entropy(logits, target, reduction="none")
    assert torch.equal(loss.cpu(), torch.zeros(3))
    assert cross_entropy(logits, target, reduction="sum").item() == 0
    assert cross_entropy(logits, target).isnan()
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.shape == (3, 0)
    loss = cross_entropy(logits, torch.zeros(3, 0, device=kernels.device), reduction="none")
    assert torch.equal(loss.detach().cpu(), torch.zeros(3))
    assert torch.autograd.grad(loss.sum(), logits)[0].shape == (3, 0)


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (3, 5, 6)])
def test_gradient_keeps_the_memory_format_of_the_logits(kernels: Backend, shape: tuple[int, ...]) -> None:
    logits = LAYOUTS["channels_last"](torch.randn(shape)).to(kernels.device).requires_grad_()
    target = torch.randint(0, 5, (shape[0], *shape[2:]), device=kernels.device)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, target), logits)
    assert gradient.stride() == logits.stride()


def test_arguments_are_left_alone(backend: Backend) -> None:
    c = SMALL[0]
    tensors = checks.on_device(c.tensors(torch.float32), backend.device)
    before = {k: (t.clone(), t._version) for k, t in tensors.items()}
    loss = cross_entropy(**{**tensors, "input": tensors["input"].requires_grad_()})
    loss.backward()
    for name, (value, version) in before.items():
        assert torch.equal(tensors[name], value), name
        assert tensors[name]._version == version, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_returned_lse_is_in_the_accumulation_dtype(backend: Backend, dtype: torch.dtype) -> None:
    logits = torch.randn(3, 5, dtype=dtype, device=backend.device)
    target = torch.randint(0, 5, (3,), device=backend.device)
    _, lse = cross_entropy(logits, target, return_lse=True)
    assert lse.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert lse.shape == (3,)


def test_legacy_reduction_arguments_as_in_torch(backend: Backend) -> None:
    logits = torch.randn(3, 5, device=backend.device)
    target = torch.randint(0, 5, (3,), device=backend.device)
    checks.check_legacy_reduction(cross_entropy, torch.nn.functional.cross_entropy, logits, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, dtype: torch.dtype) -> None:
    check_torchs_samples("cross_entropy", cross_entropy, backend, dtype, every=7, equal_nan=True)


def test_raw_backward_reads_nothing_outside_for_a_bad_target(kernels: Backend) -> None:
    arguments = {**RAW_BACKWARD, "target": torch.tensor([0, 2**40, -7])}
    moved = [a.to(kernels.device) if isinstance(a, torch.Tensor) else a for a in arguments.values()]
    gradient = raw(kernels, "cross_entropy_backward")(*moved)
    assert gradient[0].isfinite().all()
    assert gradient[1:].isnan().all()


@pytest.mark.parametrize("classes", [1, 2, 10, 16, 17])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_few_classes_with_everything(kernels: Backend, rows: int, classes: int) -> None:
    """Up to 16 contiguous classes go across rows on the CPU: ignored rows, weights, smoothing, infinities."""
    logits = torch.randn(rows, classes, dtype=torch.float64)
    logits[::5, 0] = float("-inf") if classes > 1 else 0.0
    target = torch.randint(classes, (rows,))
    target[::3] = -100
    weight = torch.rand(classes, dtype=torch.float64) + 0.5
    for smoothing in (0.0, 0.2):
        wanted_leaf = logits.clone().requires_grad_()
        finite = smoothing == 0.0
        use = wanted_leaf if finite else wanted_leaf.nan_to_num(neginf=-9.0)
        wanted = torch.nn.functional.cross_entropy(
            use, target, weight, reduction="sum", label_smoothing=smoothing
        )
        (wanted_gradient,) = torch.autograd.grad(wanted, use)
        leaf = use.detach().float().to(kernels.device).requires_grad_()
        found = cross_entropy(
            leaf,
            target.to(kernels.device),
            weight.float().to(kernels.device),
            reduction="sum",
            label_smoothing=smoothing,
        )
        (gradient,) = torch.autograd.grad(found, leaf)
        torch.testing.assert_close(found.cpu(), wanted.float(), equal_nan=True)
        torch.testing.assert_close(gradient.cpu(), wanted_gradient.float(), rtol=1e-5, atol=1e-6)
