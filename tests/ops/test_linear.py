"""linear: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import pytest
import torch

import pyops
import pyops.functional as F
from pyops.kinds import Activation, parse
from tests.suite import checks
from tests.suite.backends import Backend
from tests.suite.cases import DTYPES, pairwise
from tests.suite.torch_samples import check_torchs_samples

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def operands(
    m: int, k: int, n: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    x, w, b = (t.to(device, dtype).requires_grad_() for t in tensors)
    return x, w, b


# ------------------------------------------------------------------------------------------------ accuracy


def test_sum_of_no_terms_is_the_bias(backend: Backend) -> None:
    bias = torch.randn(4, device=backend.device)
    found = F.linear(torch.empty(3, 0, device=backend.device), torch.empty(4, 0, device=backend.device), bias)
    assert torch.equal(found, bias.expand(3, 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_stay_in_their_row_and_column(backend: Backend, dtype: torch.dtype) -> None:
    x, w, b = (t.detach() for t in operands(7, 11, 9, backend.device, dtype))
    x[3, 10], w[8, 2] = torch.inf, torch.nan
    special = ~F.linear(x, w, b, activation="tanh").isfinite().cpu()
    assert not special[:3, :8].any()
    assert not special[4:, :8].any()
    assert special[:, 8].all()
    assert F.linear(x, w, b)[3].isinf().any()


# ------------------------------------------------------------------------------------------------- layouts


def test_transposed_operands_are_not_copied() -> None:
    x, w = torch.randn(64, 300).t(), torch.randn(64, 200).t()
    with pyops.use_backend("cpp"):
        largest = checks.largest_allocation(lambda: F.linear(x, w, activation="relu"))
    assert largest == 300 * 200


# -------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("activation", "kept"), [(None, 0), ("relu", 1), ("gelu", 1), ("tanh", 1)])
def test_backward_keeps_one_tensor_for_the_activation(kernels: Backend, activation: str, kept: int) -> None:
    x, w, b = operands(16, 9, 50, kernels.device)
    found = checks.saved_for_backward(lambda: F.linear(x, w, b, activation=activation), x, w, b)
    assert found == kept * 16 * 50 * 4


def test_frozen_weight_does_not_keep_the_input(kernels: Backend) -> None:
    x, w, b = operands(16, 9, 50, kernels.device)
    w = w.detach()
    kept = checks.saved_for_backward(lambda: F.linear(x * 1, w, b), w, b)
    assert kept == 0


def test_plain_backward_makes_gradients_only() -> None:
    x, w, b = operands(300, 20, 250)
    with pyops.use_backend("cpp"):
        y = F.linear(x, w, b)
        upstream = torch.randn_like(y)
        largest = checks.largest_allocation(lambda: torch.autograd.grad(y, (x, w, b), upstream))
    assert largest == 300 * 20


# ---------------------------------------------------------------------------------- gradients, dispatching


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_gradcheck_with_dropout(backend: Backend, activation: str) -> None:
    inputs = operands(3, 4, 5, backend.device, torch.float64)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(backend.device).manual_seed(3)
        return F.linear(*tensors, activation=activation, dropout_p=0.4, generator=generator)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=not backend.thorough)
    if backend.thorough:
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_gradients_only_where_asked_for(
    kernels: Backend, activation: str | None, wanted: tuple[int, int, int]
) -> None:
    tensors = [
        t.detach().requires_grad_(bool(needed))
        for t, needed in zip(operands(4, 7, 5, kernels.device), wanted, strict=True)
    ]
    asked = [t for t in tensors if t.requires_grad]
    found, expected = (
        torch.autograd.grad(f(*tensors, activation=activation).square().sum(), asked)
        for f in (
            F.linear,
            lambda *a, activation: pyops.reference.linear.linear(*a, None, 0.0, _parsed(activation)),
        )
    )
    torch.testing.assert_close(found, expected)


def _parsed(activation: str | None) -> Activation:
    return parse("linear", activation)


def test_compile_with_dynamic_shapes_compiles_once() -> None:
    with pyops.use_backend("cpp"):
        checks.check_compiles_once(F.linear, [operands(m, 5, 3) for m in (6, 7, 11)], activation="relu")


def test_backward_under_autocast_keeps_its_dtype(kernels: Backend) -> None:
    """The library's products must not be cast once more: their results are written where others read."""
    x, w, b = operands(5, 7, 9, kernels.device)
    y = F.linear(x, w, b, activation="relu")
    with torch.autocast(kernels.device, torch.bfloat16):
        found = torch.autograd.grad(y, (x, w, b), torch.ones_like(y))
    wanted = torch.autograd.grad(
        torch.relu(torch.nn.functional.linear(x, w, b)), (x, w, b), torch.ones_like(y)
    )
    torch.testing.assert_close(found, wanted)


# ------------------------------------------------------------------------------------------------- dropout

_DROPOUT = pairwise(
    shape=[(3, 8, 5), (5, 6, 13), (2, 3, 1031)],
    activation=[None, "relu", "gelu", "tanh"],
    p=[0.1, 0.5, 1.0],
    dtype=[torch.float32, torch.bfloat16],
)


@pytest.mark.parametrize("options", _DROPOUT, ids=str)
def test_dropout_is_that_of_the_output(backend: Backend, options: dict) -> None:
    """The reference drops elements of the contiguous output; its mask is that of every backend."""
    (m, k, n), dtype, p = options["shape"], options["dtype"], options["p"]
    if n > 1000 and not backend.thorough:
        pytest.skip("slow")
    tensors = operands(m, k, n, backend.device, dtype)
    found = F.linear(
        *tensors, activation=options["activation"], dropout_p=p,
        generator=torch.Generator(backend.device).manual_seed(5),
    )  # fmt: skip
    seed = pyops.ops.dropout.draw_seed(found.device, torch.Generator(backend.device).manual_seed(5))
    wanted = pyops.reference.linear.linear(*tensors, seed, p, _parsed(options["activation"]))
    upstream = torch.randn_like(wanted)
    results = [(y, *torch.autograd.grad(y, tensors, upstream)) for y in (found, wanted)]
    # Elements of either are 0 together; 16-bit results differ by a rounding on the way.
    assert torch.equal(found == 0, wanted == 0) or options["activation"] == "gelu"
    tolerance = 2e-5 if dtype is torch.float32 else 3e-2
    for ours, theirs in zip(*results, strict=True):
        scale = theirs.abs().max().clamp_min(1.0)
        assert ((ours - theirs).abs().max() / scale).item() < tolerance


def test_no_dropout_outside_of_training(backend: Backend) -> None:
    x, w, b = operands(33, 40, 7, backend.device)
    assert torch.equal(F.linear(x, w, b, dropout_p=0.5, training=False), F.linear(x, w, b))


def test_masks_follow_torchs_generator(backend: Backend) -> None:
    x, w, _ = operands(4, 3, 50, backend.device)
    torch.manual_seed(1)
    first, second = F.linear(x, w, dropout_p=0.5), F.linear(x, w, dropout_p=0.5)
    torch.manual_seed(1)
    assert torch.equal(first, F.linear(x, w, dropout_p=0.5))
    assert not torch.equal(first, second)


# -------------------------------------------------------------------------------------------------- torch's


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, dtype: torch.dtype) -> None:
    check_torchs_samples("linear", F.linear, backend, dtype)


def test_weight_of_one_dimension(backend: Backend) -> None:
    x, w = torch.randn(4, 3, device=backend.device), torch.randn(3, device=backend.device)
    bias = torch.randn((), device=backend.device)
    torch.testing.assert_close(F.linear(x, w), torch.nn.functional.linear(x, w))
    torch.testing.assert_close(F.linear(x, w, bias), x @ w + bias)  # only documented in torch
    torch.testing.assert_close(F.linear(x, w, activation="relu"), torch.relu(x @ w))


def test_integers_are_left_to_torch() -> None:
    x, w = torch.randint(5, (40, 30)), torch.randint(5, (6, 30))
    assert torch.equal(F.linear(x, w), torch.nn.functional.linear(x, w))


def test_tiny_tensors_are_left_to_torch_unless_something_is_fused() -> None:
    x, w, b = operands(4, 3, 5)
    assert "Linear" not in type(F.linear(x, w, b).grad_fn).__name__
    for fused in ({"activation": "relu"}, {"dropout_p": 0.5}):
        assert "Linear" in type(F.linear(x, w, b, **fused).grad_fn).__name__


@pytest.mark.parametrize("capability", ["tf32", "ieee"])
def test_float32_is_exact_on_the_cpu_whatever_cuda_may_do(backend: Backend, capability: str) -> None:
    if backend.device != "cpu" or backend.name == "triton":
        pytest.skip("the setting is for this device")
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = capability
    try:
        x, w, b = operands(9, 40, 5)
        exact = torch.nn.functional.linear(x.double(), w.double(), b.double())
        assert (F.linear(x, w, b) - exact).abs().max() < 1e-5
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# ------------------------------------------------------------------------------------------------- modules


def test_module_is_torchs_with_extras(backend: Backend) -> None:
    torch.manual_seed(2)
    ours = pyops.nn.Linear(6, 5, activation="relu", dropout_p=0.5).to(backend.device)
    torch.manual_seed(2)
    theirs = torch.nn.Linear(6, 5).to(backend.device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(40, 6, device=backend.device)
    assert torch.equal(ours.weight, theirs.weight)
    assert (ours(x) == 0).sum() > (theirs(x) < 0).sum()
    torch.testing.assert_close(ours.eval()(x), theirs(x).relu())
    assert repr(ours) == "Linear(in_features=6, out_features=5, bias=True, activation='relu', dropout_p=0.5)"
    assert repr(pyops.nn.Linear(6, 5, bias=False)) == repr(torch.nn.Linear(6, 5, bias=False))


def test_lazy_module_becomes_a_linear_that_keeps_its_options() -> None:
    module = pyops.nn.LazyLinear(5, activation="relu")
    assert isinstance(module, torch.nn.LazyLinear)
    x = torch.randn(40, 6)
    first = module(x)
    assert type(module) is pyops.nn.Linear
    assert module.weight.shape == (5, 6)
    torch.testing.assert_close(first, torch.nn.functional.linear(x, module.weight, module.bias).relu())
    assert torch.equal(module(x), first)
    loaded = pyops.nn.LazyLinear(5)
    loaded.load_state_dict(module.state_dict())
    torch.testing.assert_close(loaded(x).relu(), first)


@pytest.mark.parametrize("layer", [pyops.nn.Linear, pyops.nn.LazyLinear])
def test_module_refuses_bad_options(layer: type) -> None:
    sizes = (6, 5) if layer is pyops.nn.Linear else (5,)
    with pytest.raises(ValueError, match="Linear: activation must be None or one of"):
        layer(*sizes, activation="swish")
    with pytest.raises(ValueError, match="Linear: dropout_p must be between 0 and 1, got 2"):
        layer(*sizes, dropout_p=2)
