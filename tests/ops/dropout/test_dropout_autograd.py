"""dropout with autograd, autocast, checkpointing and torch.compile; what it keeps for backward."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import THOROUGH, Backend

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def test_third_derivative_has_the_same_mask(backend: Backend) -> None:
    x = torch.randn(40, dtype=torch.float64, device=backend.device, requires_grad=True)
    y = F.dropout(x, 0.5)
    (g,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    (t,) = torch.autograd.grad(h.sum(), x)
    mask = (y != 0).double() * 2
    torch.testing.assert_close(t, 6 * mask**3)


def test_a_gradient_that_is_not_needed_is_none(kernels: Backend) -> None:
    x, bias, residual = (torch.randn(shape, device=kernels.device) for shape in [(4, 6), (6,), (4, 6)])
    for i in range(3):
        tensors = [x.clone(), bias.clone(), residual.clone()]
        tensors[i].requires_grad_()
        y = F.dropout(tensors[0], 0.5, bias=tensors[1], activation="relu", residual=tensors[2])
        y.sum().backward()
        assert [t.grad is not None for t in tensors] == [j == i for j in range(3)]


@pytest.mark.parametrize("size", [10, 100_000])
def test_plain_dropout_keeps_16_bytes(backend: Backend, size: int) -> None:
    if size > 1000 and not backend.thorough:
        pytest.skip("too slow")
    x = torch.randn(size, device=backend.device, requires_grad=True)
    if backend.name != "reference":
        assert checks.saved_for_backward(lambda: F.dropout(x, 0.3), x) == 16


@pytest.mark.parametrize(
    ("activation", "residual", "kept"),
    [(None, False, 0), ("relu", False, 400), ("sigmoid", False, 400), ("gelu", False, 0), ("relu", True, 0)],
)
def test_fused_form_keeps_output_or_input(kernels: Backend, activation, residual: bool, kept: int) -> None:
    x = torch.randn(10, 10, device=kernels.device, requires_grad=True)
    bias = torch.randn(10, device=kernels.device, requires_grad=True)
    r = torch.randn(10, 10, device=kernels.device) if residual else None
    given = [x, bias] + ([] if r is None else [r])
    call = partial(F.dropout, x, 0.3, bias=bias, activation=activation, residual=r)
    assert checks.saved_for_backward(call, *given) == kept + 16
    assert checks.saved_for_backward(partial(call, training=False), *given) == kept


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_repeats_the_mask(backend: Backend, reentrant: bool) -> None:
    x = torch.rand(6, 40, device=backend.device) + 1
    bias = torch.rand(40, device=backend.device)

    def block(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.dropout(F.dropout(x, 0.5, bias=bias, activation="relu"), 0.3)

    results = []
    for call in (block, partial(checkpoint, block, use_reentrant=reentrant)):
        leaves = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
        torch.manual_seed(3)
        y = call(*leaves)
        results.append(
            (y, *torch.autograd.grad(y.sum(), leaves)) if not reentrant else (y, *_backward(y, leaves))
        )
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)


def _backward(y: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    y.sum().backward()  # reentrant checkpointing does not work with torch.autograd.grad
    return [t.grad for t in leaves if t.grad is not None]


def _plain(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5)


def _fused(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, 0.5, bias=x[0], activation="relu")


def _inplace(x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x * 1, 0.5, inplace=True)


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
@pytest.mark.parametrize("function", [_plain, _fused, _inplace])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_fullgraph_uses_one_mask_both_ways(backend: Backend, function, compiler: str) -> None:
    if compiler == "inductor" and backend.name == "reference":
        pytest.skip("torch's formulas are torch's")
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    outputs = []
    for _ in range(2):
        x = (torch.rand(8, 33, device=backend.device) + 1).requires_grad_()
        y = compiled(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        kept = y != 0
        assert 0.3 < kept.double().mean() < 0.7
        wanted = kept * 2.0
        if function is _fused:
            wanted[0] += wanted.sum(0)
        torch.testing.assert_close(gradient, wanted)
        outputs.append(kept)
    assert not torch.equal(*outputs)


def test_compile_with_another_rate_and_in_evaluation() -> None:
    compiled = torch.compile(F.dropout, fullgraph=True, backend="aot_eager")
    x = torch.rand(300) + 1
    for p in (0.0, 0.25, 1.0):
        torch.manual_seed(1)
        found = compiled(x, p)
        torch.manual_seed(1)
        assert torch.equal(found, F.dropout(x, p))
    assert torch.equal(compiled(x, 0.5, False), x)


@pytest.mark.parametrize("name", ["hardtanh", "relu6"])
def test_clipped_elements_that_dropout_scales_have_no_gradient(kernels: Backend, name: str) -> None:
    """Backward formed the activation's output from the scaled one, and rounding took it from its end."""
    x = torch.full((3, 40), 9.0, device=kernels.device, requires_grad=True)
    weight = torch.eye(40, device=kernels.device)
    for p in (0.1, 0.3, 0.47, 0.6, 0.7, 0.9):
        for y in (F.dropout(x, p, activation=name), F.linear(x, weight, activation=name, dropout_p=p)):
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert gradient.count_nonzero() == 0
