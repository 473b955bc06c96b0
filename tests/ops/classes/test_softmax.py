"""softmax and log_softmax: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import pytest
import torch

import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import Backend
from tests.suite.cases import DTYPES
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.softmax import OPS
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

FUNCTIONS = {
    "softmax": (F.softmax, torch.nn.functional.softmax),
    "log_softmax": (F.log_softmax, torch.nn.functional.log_softmax),
}


# ------------------------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("offset", [-1e4, 1e4])
@pytest.mark.parametrize("op", OPS)
def test_result_does_not_change_with_a_common_offset(backend: Backend, op: str, offset: float) -> None:
    logits = torch.randint(-8, 8, (6, 37), device=backend.device).float()  # exact when the offset is added
    assert torch.equal(FUNCTIONS[op][0](logits, 1), FUNCTIONS[op][0](logits + offset, 1))


def test_probabilities_sum_to_one(backend: Backend) -> None:
    sums = F.softmax(torch.randn(8, 1000, device=backend.device), 1).double().sum(1)
    assert (sums - 1).abs().max() < 1e-6


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_sixteen_bit_rows_that_are_not_finite(op: str, dtype: torch.dtype) -> None:
    """Rows whose exp is kept, around the lengths where rows begin and end to be kept, and where pairs end."""
    for classes in (255, 256, 293, 4096, 4097):
        x = torch.randn(7, classes)
        x[1, 3], x[3, -1], x[4, 5] = torch.nan, torch.inf, -torch.inf
        x[2] = -torch.inf
        x = x.to(dtype)
        wanted = FUNCTIONS[op][1](x.float(), 1).to(dtype)
        # One rounding, and a neighbour where float32 lies in the middle.
        torch.testing.assert_close(
            FUNCTIONS[op][0](x, 1), wanted, rtol=torch.finfo(dtype).eps, atol=1e-7, equal_nan=True
        )


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_output_and_gradient_keep_the_memory_format(kernels: Backend, op: str, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 3, 4)).to(kernels.device).requires_grad_()
    y = FUNCTIONS[op][0](x, 1)
    assert y.stride() == x.stride()
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert gradient.stride() == x.stride()


# ---------------------------------------------------------------------------------- gradients, dispatching


def test_compile_with_dynamic_shapes_compiles_once() -> None:
    shapes = [(4, 7), (5, 9), (11, 3)]
    checks.check_compiles_once(F.log_softmax, [(torch.randn(shape), 1) for shape in shapes])


@pytest.mark.parametrize("op", OPS)
def test_backward_keeps_the_output_alone(kernels: Backend, op: str) -> None:
    x = torch.randn(16, 50, device=kernels.device, requires_grad=True)
    assert checks.saved_for_backward(lambda: FUNCTIONS[op][0](x, 1), x) == 16 * 50 * 4


@pytest.mark.large
def test_pitfall_01_offsets_beyond_2_to_the_31(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    x = torch.zeros(2**16 + 1, 2**15 + 1, dtype=torch.bfloat16, device=kernels.device)
    x[-1, -1] = 30.0
    y = F.softmax(x, 1)
    assert y[-1, -1].item() == 1.0
    assert y[-1, -2].item() < 1e-12
    assert abs(y[-2, -1].item() * (2**15 + 1) - 1) < 0.01


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_argument_casts_first(backend: Backend, op: str, dtype: torch.dtype) -> None:
    ours, torchs = FUNCTIONS[op]
    for x in (torch.randn(3, 5), torch.randint(0, 5, (3, 5)), torch.randn(3, 5, dtype=torch.float16)):
        x = x.to(backend.device)
        found, wanted = ours(x, 1, dtype=dtype), torchs(x, 1, dtype=dtype)
        assert found.dtype is dtype
        error, scale = (found - wanted).abs().max().item(), wanted.abs().max().item()
        assert error <= 2 * torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (2, 3, 4), (2, 3, 4, 2)])
def test_implicit_dimension_is_torchs_and_warns(backend: Backend, op: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=backend.device)
    with pytest.warns(UserWarning, match="Implicit dimension choice") as ours:
        found = FUNCTIONS[op][0](x)
    with pytest.warns(UserWarning, match="Implicit dimension choice") as theirs:
        wanted = FUNCTIONS[op][1](x)
    torch.testing.assert_close(found, wanted)
    assert ours[0].filename == theirs[0].filename == __file__


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, op: str, dtype: torch.dtype) -> None:
    check_torchs_samples(op, FUNCTIONS[op][0], backend, dtype)
