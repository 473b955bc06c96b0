"""The activations: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as T

import pyops
import pyops.functional as F
from pyops.kinds import Activation, parse
from tests.suite import checks
from tests.suite.backends import Backend, raw
from tests.suite.cases import Case, sweep
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.activation import FORMULAS, VARIANTS, case
from tests.suite.torch_samples import check_torchs_samples, op_infos

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

INPLACE = ["relu", "leaky_relu", "selu", "elu", "silu", "hardswish", "relu6", "hardtanh", "hardsigmoid"]


def functions(variant: str):
    """Ours and torch's, with the variant's options bound."""
    name, options = VARIANTS[variant]
    return (
        lambda *a, **k: getattr(F, name)(*a, **options, **k),
        lambda *a, **k: getattr(T, name)(*a, **options, **k),
    )


def both_gradients(variant: str, x: torch.Tensor, upstream: torch.Tensor | None = None):
    """(ours, torch's) outputs and gradients at ``x``."""
    results = []
    for function in functions(variant):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = function(leaf)
        g = torch.ones_like(y) if upstream is None else upstream
        results.append((y.detach(), torch.autograd.grad(y, leaf, g)[0]))
    return results


# ------------------------------------------------------------------------------------------------ accuracy

# Ends inside a vector, a pack and a block.
_SIZES = [case(v, s) for v in VARIANTS for s in [(61,), (3, 131)]]


@sweep(_SIZES)
def test_accuracy_of_every_kind(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    if str(backend) == "triton-cpu" and dtype is torch.bfloat16 and case.op in ("sigmoid", "tanh"):
        pytest.skip("Triton's interpreter truncates to bfloat16: the saved output is too small")
    checks.check_accuracy(case, backend, dtype)


_SPECIAL = [
    0.0,
    -0.0,
    6.0,
    1.0,
    -1.0,
    3.0,
    -3.0,
    20.0,
    0.5,
    -1e-30,
    1e-30,
    88.0,
    -88.0,
    1e4,
    -1e4,
    math.nan,
    math.inf,
    -math.inf,
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_pitfall_30_boundaries_nan_and_infinity(backend: Backend, variant: str) -> None:
    """One element at a time: torch's vectorised CPU loops differ from its scalar ones at NaN."""
    if backend.name == "reference":
        pytest.skip("is torch's own")
    x = torch.tensor(_SPECIAL, device=backend.device)
    leaf = x.clone().requires_grad_()
    found = functions(variant)[0](leaf)
    (gradient,) = torch.autograd.grad(found, leaf, torch.full_like(x, 2.0))
    for i, value in enumerate(_SPECIAL):
        one = torch.tensor([value], requires_grad=True)
        wanted = functions(variant)[1](one)
        (wanted_gradient,) = torch.autograd.grad(wanted, one, torch.full_like(one, 2.0))
        exact = {"rtol": 1e-5, "atol": 1e-30, "equal_nan": True}
        if variant.startswith("gelu"):  # torch's 1 + erf and 1 + tanh cancel
            exact["atol"] = 1e-6
        torch.testing.assert_close(found[i : i + 1].cpu(), wanted, msg=f"{variant}({value})", **exact)
        if value == 0 and variant in ("relu", "relu6", "hardtanh"):
            assert found[i].signbit().item() == wanted.signbit().item()
        torch.testing.assert_close(
            gradient[i : i + 1].cpu(), wanted_gradient, msg=f"{variant}'({value})", **exact
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["sigmoid", "silu", "gelu", "gelu_tanh", "selu", "elu_0.5", "softplus"])
def test_short_forms_of_16_bits_lose_nothing(backend: Backend, variant: str, dtype: torch.dtype) -> None:
    """Far tails and values near 0 keep their relative accuracy: one rounding to 16 bits, and hardly more."""
    if backend.name not in ("ptx", "emulated", "cuda"):
        pytest.skip("GPUs' short forms are those of CUDA C++")
    sizes = torch.logspace(-10, 6, 97, base=2.0, dtype=torch.float64)
    x = torch.cat([-sizes, sizes]).to(dtype)
    leaf = x.to(backend.device).requires_grad_()
    found = functions(variant)[0](leaf)
    (gradient,) = torch.autograd.grad(found, leaf, torch.ones_like(found))
    name, options = VARIANTS[variant]
    exact = x.double().requires_grad_()
    wanted = FORMULAS[name](exact, **options)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, torch.ones_like(wanted))
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    # What x is multiplied by is 0 where float32 has no normal number for it.
    least = (torch.finfo(torch.float32).tiny * exact.detach().abs()).clamp(min=tiny)
    off = (found.double().cpu() - wanted.detach()).abs()
    assert bool((off <= 0.6 * eps * wanted.detach().abs() + least).all())
    if variant in ("silu", "gelu", "softplus"):  # the others' is formed of the rounded output
        # Where the slope crosses 0 no float32 formula keeps its relative accuracy.
        slopes = {"rtol": 0.6 * eps, "atol": max(tiny, 1e-5)}
        torch.testing.assert_close(gradient.double().cpu(), wanted_gradient, **slopes)


def test_relu_passes_the_gradient_at_nan_and_keeps_the_sign_of_zero(kernels: Backend) -> None:
    x = torch.tensor([math.nan, -0.0, 0.0], device=kernels.device, requires_grad=True)
    y = F.relu(x)
    assert y.isnan().tolist() == [True, False, False]
    assert y.signbit().tolist()[1:] == [True, False]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("threshold", [1.0, -2.0, 100.0])
def test_softplus_on_both_sides_of_its_threshold(kernels: Backend, threshold: float) -> None:
    at = torch.tensor(threshold, dtype=torch.float32)
    x = torch.stack([torch.nextafter(at, at - 1), at, torch.nextafter(at, at + 1)]).to(kernels.device)
    leaf = x.clone().requires_grad_()
    y = F.softplus(leaf, 1, threshold)
    (gradient,) = torch.autograd.grad(y.sum(), leaf)
    exact = x.double().cpu()
    wanted = torch.where(exact > threshold, exact, torch.logaddexp(exact, torch.zeros_like(exact)))
    slope = torch.where(exact > threshold, torch.ones_like(exact), exact.sigmoid())
    torch.testing.assert_close(y.detach().cpu().double(), wanted, rtol=3e-7, atol=0)
    torch.testing.assert_close(gradient.cpu().double(), slope, rtol=3e-7, atol=0)


def test_gelu_keeps_the_lower_tails_relative_accuracy(kernels: Backend) -> None:
    x = torch.linspace(-9, -1, 97, device=kernels.device)
    wanted = FORMULAS["gelu"](x.double().cpu())
    error = (F.gelu(x).cpu().double() / wanted - 1).abs().max().item()
    assert error < 5e-6  # torch's is 1 below -5.5


def test_gelus_pieces_meet() -> None:
    """The CPU's vectors have a polynomial for each of 32 pieces; the last ends at 0."""
    x = torch.cat([torch.linspace(-12.9, 8, 40_001), torch.arange(-21.5, 10) / 1.6875])
    wanted = FORMULAS["gelu"](x.double())
    with pyops.use_backend("cpp"):
        error = (F.gelu(x).double() / wanted - 1).abs()
        beyond = F.gelu(torch.full((1024,), -1e30))
    assert error[x > -3].max() < 1e-6
    assert error.max() < 1e-5
    assert torch.equal(beyond, torch.zeros(1024))
    assert beyond.signbit().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gelu_of_every_16_bit_number(kernels: Backend, dtype: torch.dtype) -> None:
    """Its formula for 16 bits has fewer terms; an odd length leaves a few elements to the loop's end."""
    if str(kernels) == "triton-cpu" and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter truncates to bfloat16")
    x = torch.arange(-(2**15), 2**15 - 1, dtype=torch.int16).view(dtype)
    x = x[x.double().abs() < 1e4].to(kernels.device)
    exact = x.double()
    value = exact * torch.special.log_ndtr(exact).exp()  # float64's 1 + erf loses the lower tail
    leaf = exact.clone().requires_grad_()
    (slope,) = torch.autograd.grad(T.gelu(leaf).sum(), leaf)
    x.requires_grad_()
    y = F.gelu(x)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    information = torch.finfo(dtype)
    normal = value.abs() >= information.smallest_normal
    error = (y.detach().double() - value).abs() / value.abs()
    assert error[normal].max() <= 0.51 * information.eps
    assert (grad.double() - slope).abs().max() <= information.eps


def test_hardtanh_at_and_beside_its_bounds_for_every_16_bit_number(kernels: Backend) -> None:
    """Among the bounds are some that 16 bits do not hold. At NaN torch's own loops differ."""
    x = torch.arange(-(2**15), 2**15 - 1, dtype=torch.int16).view(torch.float16)
    x = x[~x.isnan()].to(kernels.device)
    for low, high in ((-0.1, 0.7), (0.0, 6.0), (-math.inf, 3.0), (1.0, 1.0)):
        found, wanted = [], []
        for function, results in ((F.hardtanh, found), (T.hardtanh, wanted)):
            leaf = x.clone().requires_grad_()
            y = function(leaf, low, high)
            results += [y.detach(), *torch.autograd.grad(y, leaf, torch.ones_like(y))]
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


def test_hardtanh_refuses_bounds_in_the_wrong_order_and_takes_nan() -> None:
    x = torch.randn(3, 5)
    with pyops.use_backend("cpp"):
        with pytest.raises(ValueError, match="min_val cannot be greater than max_val"):
            F.hardtanh(x, 2.0, 1.0)
        assert F.hardtanh(x, math.nan, 1.0).isnan().all()


@pytest.mark.parametrize("name", ["elu", "selu"])
def test_saturated_16_bit_slopes_are_as_exact_as_torchs(kernels: Backend, name: str) -> None:
    x = torch.linspace(-7, -3, 33).to(torch.bfloat16).to(kernels.device)
    (_, found), (_, wanted) = both_gradients(name, x)
    torch.testing.assert_close(found, wanted)


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("variant", ["relu", "gelu"])
@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_dense_tensors_are_processed_as_they_lie(kernels: Backend, variant: str, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, 3, 4)).to(kernels.device)
    (y, gradient), wanted = both_gradients(variant, x)
    assert y.stride() == gradient.stride() == x.stride()
    torch.testing.assert_close((y, gradient), wanted)
    assert checks.saved_for_backward(lambda: F.relu(x.requires_grad_()), x) == 2 * 5 * 3 * 4 * 4


# ------------------------------------------------------------------------------------------------ in place


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v][0] in INPLACE])
@pytest.mark.parametrize("layout", [None, "transposed", "sliced"])
def test_inplace_result_and_gradient(backend: Backend, variant: str, layout: str | None) -> None:
    ours, torchs = functions(variant)
    leaf = torch.randn(5, 9, device=backend.device, requires_grad=True)
    x = leaf * 1
    if layout is not None:
        x = LAYOUTS[layout](x.detach()).requires_grad_() * 1 if layout == "transposed" else x[::2, 1::2]
    version = x._version
    before = x.detach().clone()
    y = ours(x, inplace=True)
    assert y is x
    assert x._version > version
    torch.testing.assert_close(x.detach(), torchs(before))
    upstream = torch.randn_like(x)
    if layout == "transposed":
        return
    (found,) = torch.autograd.grad(y, leaf, upstream)
    probe = before.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(torchs(probe), probe, upstream)
    torch.testing.assert_close(found if layout is None else found[::2, 1::2], wanted)


@pytest.mark.parametrize("name", INPLACE)
def test_inplace_without_gradient(backend: Backend, name: str) -> None:
    x = torch.randn(5, 9, device=backend.device)
    wanted, version = getattr(T, name)(x), x._version
    assert getattr(F, name)(x, inplace=True) is x
    assert x._version > version
    torch.testing.assert_close(x, wanted)
    with torch.no_grad():
        leaf = torch.randn(5, device=backend.device, requires_grad=True)
        assert getattr(F, name)(leaf, inplace=True) is leaf


@pytest.mark.parametrize("name", INPLACE)
def test_inplace_refuses_what_torch_refuses_and_changes_nothing(backend: Backend, name: str) -> None:
    leaf = torch.randn(5, 9, device=backend.device, requires_grad=True)
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
        getattr(F, name)(leaf, inplace=True)
    with pytest.raises(RuntimeError, match="a view of a leaf Variable that requires grad"):
        getattr(F, name)(leaf[1:], inplace=True)
    assert torch.equal(leaf, before)
    with pytest.raises(RuntimeError, match="single memory location"):
        getattr(F, name)(torch.randn(1, device=backend.device).expand(3), inplace=True)


def test_inplace_detects_a_saved_tensor_that_was_overwritten(kernels: Backend) -> None:
    x = torch.randn(7, device=kernels.device, requires_grad=True)
    y = x.exp()  # exp's backward needs y
    F.relu(y, inplace=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_inplace_compiles(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    torch.compiler.reset()

    def block(x: torch.Tensor) -> torch.Tensor:
        return F.relu(x * 2, inplace=True) + 1

    x = torch.randn(5, 9, device=kernels.device, requires_grad=True)
    y = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, T.relu(x * 2) + 1)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, 2.0 * (x > 0))


# ---------------------------------------------------------------------------------- gradients, dispatching


@pytest.mark.parametrize("name", ["selu", "elu"])
def test_second_derivative_from_a_kept_input(kernels: Backend, name: str) -> None:
    """16-bit elu and selu keep their input: the gradient's formula is another one then."""
    seconds = []
    for function in functions(name):
        x = torch.linspace(-3, 3, 13, dtype=torch.bfloat16, device=kernels.device).requires_grad_()
        (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.sum(), x)[0])
    torch.testing.assert_close(*seconds)


def test_opcheck_in_place_and_permuted(kernels: Backend) -> None:
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    x = torch.randn(5, 4, device=kernels.device).t()
    torch.library.opcheck(raw(kernels, "activation_forward_"), (x, 3, 0.0, 0.0), test_utils=utilities)
    torch.library.opcheck(raw(kernels, "activation_forward"), (x, 3, 0.0, 0.0), test_utils=utilities)


def test_compile_with_dynamic_shapes_compiles_once() -> None:
    shapes = [(64, 70), (65, 90), (110, 30)]
    checks.check_compiles_once(F.gelu, [(torch.randn(shape),) for shape in shapes])


@pytest.mark.parametrize(
    ("variant", "dtype", "bytes_kept"),
    [
        *((v, torch.float32, 4) for v in ("relu", "sigmoid", "tanh")),
        *((v, dtype, 0) for v in ("selu", "elu", "leaky_relu") for dtype in (torch.float32, torch.bfloat16)),
        *((v, torch.float32, 0) for v in ("leaky_relu_negative", "elu_negative", "softplus", "gelu", "silu")),
        *((v, torch.float32, 0) for v in ("relu6", "hardtanh", "hardsigmoid")),
    ],
)
def test_backward_keeps_one_tensor(
    kernels: Backend, variant: str, dtype: torch.dtype, bytes_kept: int
) -> None:
    """The output where bytes are counted, otherwise the input: what torch keeps."""
    x = torch.randn(16, 5, device=kernels.device, dtype=dtype, requires_grad=True)
    assert checks.saved_for_backward(lambda: functions(variant)[0](x), x) == bytes_kept * 16 * 5


@pytest.mark.large
def test_pitfall_01_offsets_beyond_2_to_the_31(kernels: Backend) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    x = torch.full((2**31 + 9,), -1.0, dtype=torch.bfloat16, device=kernels.device)
    x[-1] = 3.0
    y = F.relu(x, inplace=True)
    assert y[-1].item() == 3.0
    assert y[-2].item() == y[2**31 - 1].item() == y[0].item() == 0.0


# ------------------------------------------------------------------------------------------ dtypes, errors


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_other_dtypes_are_promoted_as_torch_does(backend: Backend, name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 3, 2], device=backend.device).to(dtype)
    torch.testing.assert_close(getattr(F, name)(x), getattr(T, name)(x))


@pytest.mark.parametrize("name", ["relu", "relu6", "hardtanh"])
def test_what_rectifies_takes_integers(backend: Backend, name: str) -> None:
    x = torch.tensor([-2, 0, 3], device=backend.device)
    wanted = getattr(T, name)(x)
    assert torch.equal(getattr(F, name)(x), wanted)
    assert getattr(F, name)(x, inplace=True) is x
    assert torch.equal(x, wanted)


@pytest.mark.parametrize(
    "name", [n for n in FORMULAS if n not in ("relu", "relu6", "hardtanh", "sigmoid", "tanh")]
)
def test_integers_are_refused_where_torch_refuses_them(name: str) -> None:
    with pyops.use_backend("cpp"), pytest.raises(TypeError, match=f"{name}: input must be a floating.*int64"):
        getattr(F, name)(torch.tensor([1, 2]))


@pytest.mark.parametrize("name", FORMULAS)
def test_what_is_no_tensor_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: input must be a Tensor, got list"):
        getattr(F, name)([1.0])


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="gelu: approximate must be 'none' or 'tanh', got 'erf'"):
        F.gelu(torch.zeros(3), "erf")
    with pytest.raises(ValueError, match=r"linear: activation must be None or one of 'relu', .*got 'rleu'"):
        parse("linear", "rleu")
    with pytest.raises(ValueError, match="linear: activation must be None or one of"):
        parse("linear", 3)


def test_parse_gives_torchs_default_parameters() -> None:
    assert parse("linear", None) == Activation(0)
    assert parse("linear", "leaky_relu") == Activation(2, 0.01)
    assert parse("linear", "softplus") == Activation(6, 1.0, 20.0)
    assert parse("linear", "gelu_tanh").kind == 9
    assert parse("linear", "relu6") == Activation(12, 0.0, 6.0)
    assert parse("linear", "hardtanh") == Activation(12, -1.0, 1.0)
    assert [k for k in range(14) if Activation(k, 1.0).from_output] == [0, 1, 2, 3, 4, 5, 7, 12]
    assert not Activation(2, -0.1).from_output


def test_tiny_tensors_are_left_to_torch_unless_a_backend_is_asked_for() -> None:
    x = torch.randn(4, 7, requires_grad=True)
    assert "_Activation" not in type(F.relu(x).grad_fn).__name__
    with pyops.use_backend("cpp"):
        assert "_Activation" in type(F.relu(x).grad_fn).__name__
    assert "_Activation" in type(F.relu(torch.randn(400, 700, requires_grad=True)).grad_fn).__name__


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, variant: str, dtype: torch.dtype) -> None:
    name, options = VARIANTS[variant]
    if options or not backend.thorough:
        pytest.skip("one run over torch's samples is enough")
    check_torchs_samples(name, getattr(F, name), backend, dtype, infos=op_infos(name)[:1])
