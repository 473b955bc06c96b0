"""The elementwise losses with autograd, torch.compile, autocast and threads; the gradient forward writes."""

from __future__ import annotations

import pytest
import torch

from pyops import functional as F
from pyops.ops.tools import autograd
from tests.suite import checks
from tests.suite.backends import CPP, THOROUGH, Backend
from tests.suite.cases import REDUCTIONS, Case, sweep
from tests.suite.ops.loss import BCE, BOTH, NAMES, OPS, SMALL

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# --------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_number_of_gradients(backend: Backend, op: str, reduction: str) -> None:
    """attorch#20: as many gradients as inputs, each where it belongs, whoever asks for one."""
    x, y = torch.randn(2, 40, device=backend.device), torch.rand(2, 40, device=backend.device)
    for needs in [(True, False), (False, True), (True, True)]:
        x.requires_grad_(needs[0]), y.requires_grad_(needs[1])
        leaves = [t for t in (x, y) if t.requires_grad]
        found, wanted = (
            torch.autograd.grad(f(x, y, reduction=reduction).sum(), leaves)
            for f in (OPS[op].pyops, OPS[op].torch)
        )
        torch.testing.assert_close(found, wanted)


def test_one_of_two_gradients(backend: Backend) -> None:
    x = torch.randn(40, device=backend.device, requires_grad=True)
    y = torch.rand(40, device=backend.device, requires_grad=True)
    for leaf in (x, y):
        found, wanted = (
            torch.autograd.grad(f(x, y), leaf) for f in (F.mse_loss, torch.nn.functional.mse_loss)
        )
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", THOROUGH, ids=str, indirect=True)
def test_gradients_of_weights(backend: Backend) -> None:
    """Where torch has them: of what it composes of several ops."""
    x, y = torch.randn(4, 6, device=backend.device), torch.rand(4, 6, device=backend.device)
    for op in ("mse_loss", "l1_loss", "huber_loss"):
        w = torch.rand(4, 6, device=backend.device, requires_grad=True)
        found, wanted = (torch.autograd.grad(f(x, y, weight=w), w) for f in (OPS[op].pyops, OPS[op].torch))
        torch.testing.assert_close(found, wanted)
    w, p = (torch.rand(6, device=backend.device, requires_grad=True) for _ in range(2))
    found = torch.autograd.grad(F.binary_cross_entropy_with_logits(x, y, w, pos_weight=p), (w, p))
    wanted = torch.autograd.grad(OPS[BCE].formula(x, y, w, pos_weight=p), (w, p))
    torch.testing.assert_close(found, wanted)


def test_backward_keeps_input_and_target_alone(kernels: Backend) -> None:
    x = torch.randn(2, 400, device=kernels.device, dtype=torch.bfloat16, requires_grad=True)
    y = torch.rand(2, 400, device=kernels.device, dtype=torch.bfloat16)
    written = x.numel() * 2 if kernels == CPP else 0  # the gradient: then backward reads it alone
    for op in NAMES:
        assert checks.saved_for_backward(lambda op=op: OPS[op].pyops(x, y), x, y) <= 8 + written
        assert checks.saved_for_backward(lambda op=op: OPS[op].pyops(x, y, reduction="none"), x, y) <= 8


# --------------------------------------------------------------------------------------------- dispatching


@sweep(SMALL, BOTH, THOROUGH)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    # A written gradient is scaled afterwards, and so rounded twice; a compiled one is not.
    written = backend == CPP and dtype is torch.float32 and case.options.get("reduction") != "none"
    checks.check_compile(case, backend, dtype, exact=not written)


# ------------------------------------------------------------ the gradient that forward writes, on the CPU


def _pair(n: int = 700) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, requires_grad=True), torch.rand(n, requires_grad=True)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0, torch.inf])
@pytest.mark.parametrize("op", NAMES)
def test_written_gradient_serves_every_upstream_gradient(op: str, upstream: float) -> None:
    x, y = _pair()
    leaves = [x] if op == BCE else [x, y]
    y = y if op != BCE else y.detach()
    scale = torch.tensor(upstream)
    found, wanted = (torch.autograd.grad(f(x, y), leaves, scale) for f in (OPS[op].pyops, OPS[op].torch))
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("op", NAMES)
def test_second_backward_does_not_see_what_became_of_the_first(op: str) -> None:
    x, y = _pair()
    loss = OPS[op].pyops(x, y.detach())
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    first.fill_(77.0)
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(kept, second)
    (third,) = torch.autograd.grad(loss, x, torch.tensor(3.0))
    torch.testing.assert_close(third, 3 * kept)


@pytest.mark.usefixtures("cpp")
def test_backward_after_a_change_of_the_input_raises() -> None:
    leaf, y = _pair()
    x = leaf * 1
    loss = F.huber_loss(x, y)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("cpp")
def test_accumulated_gradients_own_their_memory() -> None:
    x, y = _pair()
    for _ in range(2):
        F.mse_loss(x, y.detach()).backward()
    single = torch.autograd.grad(F.mse_loss(x, y.detach()), x)[0]
    torch.testing.assert_close(x.grad, 2 * single)


@pytest.mark.usefixtures("cpp")
def test_double_backward_with_a_written_gradient() -> None:
    x, y = _pair(9)
    loss = F.mse_loss(x, y)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(gradient.sum(), x)[0], torch.full_like(x, 2 / 9))


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", NAMES)
def test_sixteen_bit_gradient_has_the_same_bits_whichever_pass_writes_it(
    monkeypatch: pytest.MonkeyPatch, op: str, dtype: torch.dtype
) -> None:
    for n in (701, 2 * 4096):
        x, y = torch.randn(n).to(dtype).requires_grad_(), torch.rand(n).to(dtype)
        leaves = [x] if op == BCE else [x, y.requires_grad_()]
        for upstream in (1.0, 3.0):
            found = []
            for expected in (True, False):
                monkeypatch.setitem(autograd._upstream_is_one, dtype, expected)
                loss = OPS[op].pyops(x, y)
                found.append((loss, *torch.autograd.grad(loss, leaves, torch.tensor(upstream, dtype=dtype))))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.usefixtures("cpp")
def test_last_upstream_gradient_tells_which_pass_writes_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a gradient scaler forward writes none; without one it does from the second step on."""
    monkeypatch.setitem(autograd._upstream_is_one, torch.float16, False)
    x, y = torch.randn(700).half().requires_grad_(), torch.rand(700).half()
    for upstream, written in [(1024.0, 0), (1024.0, 0), (1.0, 0), (1.0, 1400), (1024.0, 1400), (1.0, 0)]:
        assert checks.saved_for_backward(lambda: F.mse_loss(x, y), x, y) == 4 + written
        torch.autograd.grad(F.mse_loss(x, y).float(), x, torch.tensor(upstream))
