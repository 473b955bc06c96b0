"""cross_entropy with autograd, torch.compile, autocast and threads; what it keeps for backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyops.functional import cross_entropy
from pyops.ops.tools import autograd
from tests.suite import checks
from tests.suite.backends import CPP, Backend
from tests.suite.ops.cross_entropy import SMALL, case
from tests.suite.ops.cross_entropy import cross_entropy as formula

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# --------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("argument", ["target", "weight", "sample_weight"])
def test_gradients_of_targets_and_weights(backend: Backend, argument: str) -> None:
    c = case("all_gradients", (3, 4), probability_target=True, weight=True, sample_weight=True, z_loss=0.1)
    tensors = checks.on_device(c.tensors(torch.float64), backend.device)
    names = ["input", argument]
    leaves = {k: t.clone().requires_grad_(k in names) for k, t in tensors.items()}
    found = torch.autograd.grad(cross_entropy(**leaves, **c.options), [leaves[n] for n in names])
    copies = {k: t.detach().cpu().requires_grad_(k in names) for k, t in tensors.items()}
    wanted = torch.autograd.grad(formula(**copies, **c.options), [copies[n] for n in names])
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f.cpu(), w, rtol=1e-10, atol=1e-12)


def test_gradient_through_lse_alone_and_through_ignored_rows(backend: Backend) -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, device=backend.device, requires_grad=True)
    target = torch.tensor([0, -100, 2], device=backend.device)
    for options in ({}, {"z_loss": 0.1}, {"label_smoothing": 0.1}):
        _, lse = cross_entropy(logits, target, return_lse=True, **options)
        factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, device=backend.device)
        (gradient,) = torch.autograd.grad(lse, logits, factors)
        torch.testing.assert_close(gradient, (logits.softmax(1) * factors[:, None]).detach())


def test_second_derivative_equals_torchs(kernels: Backend) -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, device=kernels.device, requires_grad=True)
    target = torch.randint(0, 4, (3,), device=kernels.device)

    def second(function) -> Tensor:
        (first,) = torch.autograd.grad(function(logits, target), logits, create_graph=True)
        return torch.autograd.grad(first.square().sum(), logits)[0]

    torch.testing.assert_close(second(cross_entropy), second(torch.nn.functional.cross_entropy))


# --------------------------------------------------------------------------------------------- dispatching


def test_compile_with_inductor() -> None:
    checks.check_compile(SMALL[0], CPP, torch.float32, "inductor")


def test_compile_with_dynamic_shapes_compiles_once() -> None:
    calls = [
        (torch.randn(rows, classes, requires_grad=True), torch.randint(0, classes, (rows,)))
        for rows, classes in [(4, 7), (5, 9), (11, 3)]
    ]
    checks.check_compiles_once(cross_entropy, calls, label_smoothing=0.1)


# -------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_saves_two_numbers_per_row_beside_its_arguments(kernels: Backend, dtype: torch.dtype) -> None:
    logits = torch.randn(16, 50, dtype=dtype, device=kernels.device, requires_grad=True)
    target = torch.randint(0, 50, (16,), device=kernels.device)
    saved = checks.saved_for_backward(lambda: cross_entropy(logits, target), logits, target)
    # stats and divisor; on the CPU forward has written the gradient, so that backward need not
    written = logits.numel() * dtype.itemsize if kernels.name == "cpp" else 0
    assert saved <= 16 * 2 * 4 + 8 + written


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(37, 300), (3, 11, 5, 7)], ids=str)
def test_sixteen_bit_gradient_has_the_same_bits_whichever_pass_writes_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    logits = torch.randn(shape).to(dtype).requires_grad_()
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    for upstream in (1.0, 3.0):
        found = []
        for expected in (True, False):
            monkeypatch.setitem(autograd._upstream_is_one, dtype, expected)
            loss = cross_entropy(logits, target)
            found.append((loss, *torch.autograd.grad(loss, logits, torch.tensor(upstream, dtype=dtype))))
            assert autograd._upstream_is_one[dtype] is (upstream == 1.0)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("extra", [{"inplace_backward": True}, {"return_lse": True}, {"reduction": "none"}])
def test_forward_writes_no_gradient_where_it_is_not_wanted(kernels: Backend, extra: dict) -> None:
    logits = torch.randn(16, 50, device=kernels.device, requires_grad=True) * 1
    target = torch.randint(0, 50, (16,), device=kernels.device)
    saved = checks.saved_for_backward(lambda: cross_entropy(logits, target, **extra), logits, target)
    assert saved <= 16 * 2 * 4 + 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(7, 130), (3, 6, 5, 4)])
def test_gradient_of_a_scaled_loss_and_of_a_second_backward(
    kernels: Backend, shape: tuple[int, ...], reduction: str, dtype: torch.dtype
) -> None:
    """Forward may have written the gradient for an upstream of 1: it is scaled, and given away only once."""
    logits = torch.randn(shape, dtype=dtype, device=kernels.device, requires_grad=True)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=kernels.device)
    loss = cross_entropy(logits, target, reduction=reduction)
    (wanted,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits, target, reduction=reduction), logits
    )
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    torch.testing.assert_close(first, wanted)
    first.fill_(float("nan"))  # its owner may do anything with it
    for scale in (1.0, -0.37, 0.0):
        (again,) = torch.autograd.grad(loss * scale, logits, retain_graph=True)
        torch.testing.assert_close(again, wanted * scale)
    (scaled,) = torch.autograd.grad(cross_entropy(logits, target, reduction=reduction) * 1024, logits)
    torch.testing.assert_close(scaled, wanted * 1024)


@pytest.mark.parametrize("shape", [(8, 6), (3, 5, 4)])
def test_inplace_backward_writes_the_gradient_over_the_logits(
    kernels: Backend, shape: tuple[int, ...]
) -> None:
    leaf = torch.randn(shape, device=kernels.device, requires_grad=True)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=kernels.device)
    logits = leaf * 1
    version = logits._version
    (gradient,) = torch.autograd.grad(cross_entropy(logits, target, inplace_backward=True), logits)
    (plain,) = torch.autograd.grad(cross_entropy(leaf, target), leaf)
    assert gradient.data_ptr() == logits.data_ptr()
    assert logits._version > version
    assert torch.equal(gradient, plain)
