"""batch_norm: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import pyops
import pyops.functional as F
from pyops.ops.tools.batch_norm import mask_elements
from tests.suite import checks
from tests.suite.backends import TRITON, Backend, raw
from tests.suite.layouts import LAYOUTS, channels_last
from tests.suite.ops.batch_norm import check_running_statistics

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("shape", [(64, 5), (4, 5, 6, 13), (2, 3, 8, 601)])
@pytest.mark.parametrize("last", [False, True])
def test_a_mean_far_from_zero_does_not_cancel(backend: Backend, shape: tuple, last: bool) -> None:
    """Mean 1e4 and deviation 1e-2: float32 holds neither the mean nor the difference of squares."""
    if not backend.thorough and math.prod(shape) > 1000:
        pytest.skip("slow")
    x = (torch.randn(shape, dtype=torch.float64) * 1e-2 + 1e4).float()
    x = (channels_last(x) if last else x).to(backend.device).requires_grad_()
    exact = x.detach().double().requires_grad_()
    upstream = torch.randn(shape, device=backend.device)
    running = [torch.zeros(shape[1], device=backend.device), torch.ones(shape[1], device=backend.device)]
    y = F.batch_norm(x, *running, training=True, momentum=1.0, activation="relu")
    wanted = torch.nn.functional.batch_norm(exact, None, None, training=True).relu()
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=2e-6)
    (found,) = torch.autograd.grad(y, x, upstream)
    (gradient,) = torch.autograd.grad(wanted, exact, upstream.double())
    torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-3 * gradient.abs().max().item())
    others = [d for d in range(x.dim()) if d != 1]
    torch.testing.assert_close(running[1].double(), exact.detach().var(others), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(33, 5), (3, 5, 8, 9)])
def test_squares_that_overflow_float32(shape: tuple) -> None:
    x = (torch.randn(shape) + 1) * 1e30
    for moved in (x, channels_last(x)):
        with pyops.use_backend("cpp"):
            y = F.batch_norm(moved, None, None, training=True)
        wanted = torch.nn.functional.batch_norm(x.double(), None, None, training=True)
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


def test_constant_input_becomes_the_bias(backend: Backend) -> None:
    for shape in ((6, 3), (2, 3, 5, 13)):
        x = torch.full(shape, 3.7, device=backend.device)
        bias = torch.tensor([1.0, -2.0, 0.0], device=backend.device)
        y = F.batch_norm(x, None, None, bias=bias, training=True)
        torch.testing.assert_close(y, bias.view(-1, *[1] * (x.dim() - 2)).expand_as(y), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(8, 4), (2, 4, 5, 13)])
def test_nan_and_infinity_stay_in_their_channel(backend: Backend, shape: tuple) -> None:
    x = torch.randn(shape, device=backend.device)
    x[0, 0] = math.nan
    x[1, 1] = math.inf
    x.requires_grad_()
    for training in (True, False):
        running = [torch.zeros(4, device=backend.device), torch.ones(4, device=backend.device)]
        theirs = [t.clone() for t in running]
        found = F.batch_norm(x, *running, training=training, activation="relu")
        wanted = torch.nn.functional.batch_norm(x, *theirs, training=training).relu()
        torch.testing.assert_close(found, wanted, equal_nan=True)
        assert torch.equal(running[0].isfinite(), theirs[0].isfinite())
        torch.testing.assert_close(running[0][2:], theirs[0][2:])
        gradients = [torch.autograd.grad(t, x, torch.ones_like(t))[0] for t in (found, wanted)]
        torch.testing.assert_close(gradients[0][:, 2:], gradients[1][:, 2:], atol=1e-5, rtol=1e-4)
        if not training:
            torch.testing.assert_close(*gradients, equal_nan=True)


def test_what_is_stored_as_zero_passes_no_gradient(kernels: Backend) -> None:
    """2^-25 is positive, but 0 in float16: relu's gradient follows the output, as torch's does."""
    x = torch.tensor([[1.0], [-1.0], [3.0]], dtype=torch.float16, device=kernels.device)
    residual = torch.zeros_like(x).requires_grad_()
    mean, var = torch.zeros(1, device=kernels.device), torch.ones(1, device=kernels.device)
    weight = torch.full((1,), 2.0**-25, device=kernels.device)
    y = F.batch_norm(x, mean, var, weight, eps=0.0, activation="relu", residual=residual)
    assert y.flatten().tolist() == [0.0, 0.0, 2.0**-23]
    (gradient,) = torch.autograd.grad(y, residual, torch.ones_like(y))
    assert gradient.flatten().tolist() == [0.0, 0.0, 1.0]
    plain = x.clone().requires_grad_()
    y = F.batch_norm(plain, mean, var, weight * 2**20, bias=None, eps=0.0, activation="relu")
    (gradient,) = torch.autograd.grad(y, plain, torch.ones_like(y))
    assert (gradient.flatten() != 0).tolist() == [True, False, True]


# ------------------------------------------------------------------------------------- running statistics


def test_running_statistics_are_updated_once(backend: Backend) -> None:
    check_running_statistics(backend)


def test_running_statistics_follow_strided_and_16_bit_vectors(kernels: Backend) -> None:
    x = torch.randn(6, 5, 4, device=kernels.device)
    wide = torch.zeros(2, 10, device=kernels.device)
    mean, var = wide[0, ::2], wide[1, ::2]
    theirs = [torch.zeros(5), torch.zeros(5)]
    version = wide._version
    F.batch_norm(x, mean, var, training=True)
    torch.nn.functional.batch_norm(x.cpu(), *theirs, training=True)
    torch.testing.assert_close([mean.cpu(), var.cpu()], theirs)
    assert wide[:, 1::2].eq(0).all()
    assert wide._version > version
    half = [torch.zeros(5, dtype=torch.bfloat16, device=kernels.device) for _ in range(2)]
    F.batch_norm(x.bfloat16(), *half, training=True)
    torch.testing.assert_close([t.float().cpu() for t in half], theirs, rtol=1e-2, atol=1e-3)


def test_an_empty_batch_leaves_them_alone(backend: Backend) -> None:
    mean, var = torch.ones(3, device=backend.device), torch.full((3,), 2.0, device=backend.device)
    weight = torch.ones(3, device=backend.device, requires_grad=True)
    x = torch.empty(0, 3, 4, 5, device=backend.device, requires_grad=True)
    F.batch_norm(x, mean, var, weight, training=True).sum().backward()
    assert mean.tolist() == [1.0] * 3
    assert var.tolist() == [2.0] * 3
    assert weight.grad.tolist() == [0.0] * 3


def test_autograd_knows_that_they_have_changed(kernels: Backend) -> None:
    mean, var = torch.zeros(3, device=kernels.device), torch.ones(3, device=kernels.device)
    weight = torch.ones(3, device=kernels.device, requires_grad=True)
    product = (weight * mean).sum()
    F.batch_norm(torch.randn(5, 3, 4, device=kernels.device), mean, var, training=True, activation="relu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_eval_gradient_survives_a_later_update(kernels: Backend) -> None:
    """The statistics that forward used are kept, not the buffers."""
    mean, var = torch.zeros(3, device=kernels.device), torch.ones(3, device=kernels.device)
    x = torch.randn(5, 3, 70, device=kernels.device, requires_grad=True)
    y = F.batch_norm(x, mean, var, eps=0.0, activation="relu")
    mean.fill_(7.0)
    var.fill_(9.0)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(gradient, (x > 0).to(x.dtype))


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_output_and_gradients_keep_the_memory_format(kernels: Backend, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 3, 4)).to(kernels.device).requires_grad_()
    residual = torch.randn(2, 5, 3, 4, device=kernels.device).requires_grad_()
    y = F.batch_norm(x, None, None, training=True, residual=residual, activation="relu")
    dx, _ = torch.autograd.grad(y, (x, residual), torch.ones_like(y))
    assert y.stride() == dx.stride() == x.stride()


def test_parameters_in_float32_beside_16_bits(backend: Backend) -> None:
    x = torch.randn(5, 3, 70, device=backend.device).bfloat16().requires_grad_()
    weight = torch.rand(3, device=backend.device, requires_grad=True)
    y = F.batch_norm(x, None, None, weight, weight.detach(), training=True)
    dx, dw = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


# ---------------------------------------------------------------------------------- gradients, dispatching


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 7)])
def test_opcheck_of_the_two_reductions(kernels: Backend, shape: tuple) -> None:
    x = torch.randn(shape, device=kernels.device)
    mean, rstd = torch.zeros(5, dtype=torch.float64), torch.ones(5)
    options = (None, None, None, None, mean.to(kernels.device), rstd.to(kernels.device), 1, 1, 0.0, 0.0)
    torch.library.opcheck(raw(kernels, "batch_norm_statistics"), (x, 1))
    torch.library.opcheck(raw(kernels, "batch_norm_backward_sums"), (x, x, *options))


def test_compiled_module_updates_its_statistics_once() -> None:
    torch.compiler.reset()
    ours = pyops.nn.BatchNorm2d(3, activation="relu")
    eager = copy.deepcopy(ours)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with pyops.use_backend("cpp"):
        for _ in range(3):
            x = torch.randn(2, 3, 17, 19, requires_grad=True)
            compiled(x).sum().backward()
            eager(x).sum().backward()
    for name, buffer in eager.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer, rtol=0, atol=0)
    assert ours.num_batches_tracked == 3


@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_one_argument_alone(kernels: Backend, training: bool) -> None:
    for shape in ((9, 5), (3, 5, 6, 13)):
        tensors = [torch.randn(shape), torch.rand(5), torch.randn(5), torch.randn(shape)]
        running = [torch.zeros(5), torch.ones(5)]
        for wanted in range(4):
            ours = [t.clone().to(kernels.device).requires_grad_(i == wanted) for i, t in enumerate(tensors)]
            moved = [t.clone().to(kernels.device) for t in running]
            x, w, b, r = ours
            F.batch_norm(x, *moved, w, b, training, activation="relu", residual=r).square().sum().backward()
            theirs = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
            x, w, b, r = theirs
            moved = [t.clone() for t in running]
            y = torch.nn.functional.batch_norm(x, *moved, w, b, training) + r
            y.relu().square().sum().backward()
            torch.testing.assert_close(ours[wanted].grad.cpu(), theirs[wanted].grad, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ memory


def test_batch_norm_and_relu_keep_two_vectors_and_the_input() -> None:
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    weight, bias = torch.rand(8, requires_grad=True), torch.rand(8, requires_grad=True)
    with pyops.use_backend("cpp"):
        for moved in (x, x.detach().to(memory_format=torch.channels_last).requires_grad_()):
            kept = checks.saved_for_backward(
                lambda m=moved: F.batch_norm(m, None, None, weight, bias, True, activation="relu"),
                *(moved, weight, bias),
            )
            assert kept == 8 * (8 + 4)  # the mean in float64, rstd in float32


def test_batch_norm_residual_and_relu_keep_one_bit_per_element() -> None:
    x, residual = (torch.randn(4, 8, 32, 32, requires_grad=True) for _ in range(2))
    with pyops.use_backend("cpp"):
        kept = checks.saved_for_backward(
            lambda: F.batch_norm(x, None, None, training=True, activation="relu", residual=residual), x
        )
    assert kept == x.numel() // 8 + 8 * (8 + 4)


def test_no_gradient_no_mask() -> None:
    x = torch.randn(4, 8, 32, 32)
    with pyops.use_backend("cpp"), checks._Recorder() as recorder:
        F.batch_norm(x, None, None, training=True, activation="relu", residual=x)
    assert recorder.calls[0][1][-1] is False


@pytest.mark.parametrize("shape", [(5, 3, 6, 11), (7, 13), (6, 5, 3)])
def test_mask_is_the_same_on_every_backend(kernels: Backend, shape: tuple) -> None:
    x, residual = torch.randn(shape), torch.randn(shape)
    arguments = (None, None, residual, None, None, None, 1, True, 0.1, 1e-5, 1, 0.0, 0.0, True)
    output, _, _, mask = raw(kernels, "batch_norm_forward")(
        x.to(kernels.device), *(a.to(kernels.device) if isinstance(a, torch.Tensor) else a for a in arguments)
    )
    assert torch.equal(mask_elements(mask, output.shape), output > 0)


# -------------------------------------------------------------------------------------------------- Triton


@pytest.mark.parametrize("backend", [TRITON], indirect=True, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (5, 6, 3, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_triton_offsets_of_64_bits(
    backend: Backend, shape: tuple, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyops.triton_kernels.batch_norm import batch_norm

    x, residual = (channels_last(torch.randn(shape)) if last else torch.randn(shape) for _ in range(2))
    results = []
    for narrow in (batch_norm.NARROW_ELEMENTS, 1):
        monkeypatch.setattr(batch_norm, "NARROW_ELEMENTS", narrow)
        leaf = x.to(backend.device).requires_grad_()
        y = F.batch_norm(leaf, None, None, training=True, activation="relu", residual=residual.to(leaf))
        results.append(
            (y.detach(), *torch.autograd.grad(y, leaf, torch.arange(1.0, y.numel() + 1).view(shape).to(y)))
        )
    for narrow, wide in zip(*results, strict=True):
        assert torch.equal(narrow, wide)


@pytest.mark.parametrize("with_residual", [False, True])
def test_a_change_in_place_of_a_channels_last_output_copied_its_gradient(
    kernels: Backend, with_residual: bool
) -> None:
    """The output was a view, and a change of a view copies the whole gradient (CopySlices)."""
    x, residual = (
        channels_last(torch.randn(3, 5, 20, 17, device=kernels.device)).requires_grad_() for _ in range(2)
    )
    tensors = [x, residual] if with_residual else [x]
    for training in (True, False):
        vectors = torch.randn(5, device=kernels.device), torch.rand(5, device=kernels.device)
        y = F.batch_norm(x, *vectors, training=training, residual=residual if with_residual else None)
        assert not y._is_view()
        assert y.stride() == x.stride()
        expected = torch.autograd.grad(y.relu().sum(), tensors, retain_graph=True)
        norm = y.grad_fn
        z = y.relu_()
        assert z.grad_fn.next_functions[0][0] is norm
        for found, wanted in zip(torch.autograd.grad(z.sum(), tensors), expected, strict=True):
            assert torch.equal(found, wanted)
            assert found.stride() == x.stride()
