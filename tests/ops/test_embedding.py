"""embedding on every backend, against a float64 formula and torch.nn.functional.embedding."""

from __future__ import annotations

import math

import pytest
import torch

import pyops
from pyops.functional import embedding
from tests.suite import checks
from tests.suite.backends import BACKENDS, THOROUGH, WITH_KERNELS, Backend, activate, raw
from tests.suite.cases import DTYPES, Case, sweep
from tests.suite.layouts import LAYOUTS
from tests.suite.ops.embedding import embedding_case as case
from tests.suite.torch_samples import op_infos

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy

# Dimensions end inside vectors and packs; 33 and 70 positions need a second pass of the GPU's sums.
_SIZES = [
    case("size", 5, 1, (7,)),
    case("size", 7, 5, (3, 4)),
    case("size", 11, 16, (33,)),
    case("size", 3, 37, (70,)),
    case("size", 6, 264, (9,)),
    case("size", 4, 3, ()),
    case("size", 1, 4, (5,)),
]
_OPTIONS = [
    case("options", 6, 8, (2, 9), padding_idx=padding, scale_grad_by_freq=scaled)
    for padding in (None, 0, 5, -1, -6)
    for scaled in (False, True)
]
# 1100 positions need a third pass; a row that most of them name crosses every border between chunks.
_HOT = [
    case("hot", 5, 3, (1100,), hot=0.95),
    case("hot", 5, 130, (70,), hot=1.0, scale_grad_by_freq=True),
    case("hot", 5, 12, (600,), hot=0.97, scale_grad_by_freq=True),
    case("hot", 5, 130, (70,), hot=0.9, padding_idx=1),
]
_LARGE = [
    case("large", 28, 256, (35, 32), quick=False),
    case("large", 50_000, 33, (1024,), quick=False),
    case("large", 300, 70, (60_000,), hot=0.3, quick=False, scale_grad_by_freq=True),
]
_EMPTY = [case("empty", 5, 3, (0,)), case("empty", 5, 3, (2, 0)), case("empty", 5, 0, (4,)),
          case("empty", 0, 3, (0,))]  # fmt: skip


@sweep(_SIZES)
def test_accuracy_at_sizes_that_end_inside_a_vector(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_OPTIONS, [torch.float32, torch.float16])
def test_accuracy_of_every_option(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_HOT, [torch.float32, torch.bfloat16])
def test_rows_that_many_positions_name(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_LARGE, [torch.float32, torch.bfloat16])
def test_accuracy_at_large_sizes(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep(_EMPTY, [torch.float32])
def test_empty_inputs(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


def test_values_are_copied_bit_by_bit(backend: Backend) -> None:
    weight = torch.tensor([[-0.0, math.inf], [-math.inf, 1e-45], [math.nan, 3.0]], device=backend.device)
    found = embedding(torch.tensor([2, 0, 1], device=backend.device), weight)
    assert torch.equal(found.view(torch.int32), weight.view(torch.int32)[[2, 0, 1]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_small_gradients_are_not_lost_in_16_bits(kernels: Backend, dtype: torch.dtype) -> None:
    weight = torch.zeros(2, 3, dtype=dtype, device=kernels.device, requires_grad=True)
    index = torch.zeros(1000, dtype=torch.int64, device=kernels.device)
    embedding(index, weight).sum().backward()
    assert torch.equal(weight.grad.cpu(), torch.tensor([[1000.0] * 3, [0.0] * 3], dtype=dtype))


@pytest.mark.parametrize("device_dtype", [torch.int32, torch.int64])
def test_index_dtypes(backend: Backend, device_dtype: torch.dtype) -> None:
    weight = torch.randn(6, 4, device=backend.device, requires_grad=True)
    index = torch.tensor([[5, 0], [2, 2]], dtype=device_dtype, device=backend.device)
    found = embedding(index, weight)
    assert torch.equal(found, weight[index.long()])
    (grad,) = torch.autograd.grad(found.sum(), weight)
    assert torch.equal(grad[:, 0].cpu(), torch.tensor([1.0, 0, 2, 0, 0, 1]))


# ------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@sweep([case("layout", 9, 12, (4, 5))], [torch.float32, torch.bfloat16])
def test_strided_input(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep([case("upstream", 9, 12, (4, 5))], [torch.float32])
def test_strided_upstream_gradients(backend: Backend, case: Case, dtype: torch.dtype, upstream) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


def test_gradient_is_dense_and_contiguous(kernels: Backend) -> None:
    weight = torch.randn(4, 6, device=kernels.device).t().requires_grad_()
    (grad,) = torch.autograd.grad(
        embedding(torch.tensor([1, 5], device=kernels.device), weight).sum(), weight
    )
    assert grad.is_contiguous()
    assert grad.layout is torch.strided


# ---------------------------------------------------------------------------------- gradients, dispatching

_COMPACT = [
    case("compact", 6, 8, (2, 9)),
    case("compact", 5, 3, (40,), padding_idx=-1, scale_grad_by_freq=True),
]


@sweep(
    [
        case("gradcheck", 4, 3, (2, 4)),
        case("gradcheck", 4, 3, (2, 4), padding_idx=1, scale_grad_by_freq=True),
    ],
    [torch.float64],
)
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    if "scale_grad_by_freq" in case.options:
        # The gradient is meant to differ from the derivative: only its own derivative can be checked.
        check_second_derivative(backend)
    else:
        checks.check_gradcheck(case, backend)


def check_second_derivative(backend: Backend) -> None:
    index = torch.tensor([[0, 3, 3], [1, 3, 0]], device=backend.device)
    weight = torch.randn(4, 3, dtype=torch.float64, device=backend.device, requires_grad=True)
    upstream = torch.randn(2, 3, 3, dtype=torch.float64, device=backend.device, requires_grad=True)

    def gradient(upstream):
        output = embedding(index, weight, padding_idx=1, scale_grad_by_freq=True)
        return torch.autograd.grad(output, weight, upstream, create_graph=True)[0]

    if backend.name != "reference":  # torch's own forgets the frequency here
        assert torch.autograd.gradcheck(gradient, (upstream,), fast_mode=not backend.thorough)


@sweep(_COMPACT, [torch.float32, torch.bfloat16], WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


def test_opcheck_of_renorm(kernels: Backend) -> None:
    weight = torch.randn(4, 5, device=kernels.device) * 3
    arguments = (weight, torch.tensor([1, 2, 1], device=kernels.device), 1.0, 2.0)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(raw(kernels, "embedding_renorm_"), arguments, test_utils=utilities)


@sweep(_COMPACT, [torch.float32])
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep(_COMPACT, [torch.float32, torch.bfloat16], THOROUGH)
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_compile(case, backend, dtype)


def test_compile_with_max_norm(backend: Backend) -> None:
    if not backend.thorough:
        pytest.skip("too slow")
    torch.compiler.reset()
    index = torch.tensor([1, 3, 1], device=backend.device)
    eager = torch.randn(5, 9, device=backend.device) * 3
    compiled = eager.clone()
    function = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    assert torch.equal(function(index, compiled, max_norm=1.0), embedding(index, eager, max_norm=1.0))
    assert torch.equal(compiled, eager)


def test_compile_with_dynamic_shapes_compiles_once() -> None:
    weight = torch.randn(50, 40, requires_grad=True)
    checks.check_compiles_once(embedding, [(torch.randint(50, (n,)), weight) for n in (60, 71, 93)])


@sweep(
    [
        case("threads", 300, 70, (60_000,), hot=0.3, quick=False),
        case("threads", 20_000, 65, (5000,), quick=False),
        case("runs", 5, 3, (200,), hot=0.8),
    ],
    [torch.float32, torch.bfloat16],
    WITH_KERNELS,
)
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


def test_same_bits_for_every_order_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = next(b for b in BACKENDS if b.name == "emulated")
    activate(backend)
    grad, index = torch.randn(300, 5), torch.randint(9, (300,)).clamp(max=4)
    weight = torch.randn(9, 70) * 5
    results = []
    for seed in ("0", "1", "2"):
        monkeypatch.setenv("PYOPS_EMULATION_SEED", seed)
        renormed = weight.clone()
        raw(backend, "embedding_renorm_")(renormed, index, 1.0, 2.0)
        results.append((raw(backend, "embedding_backward")(grad, index, 9, -1, True), renormed))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@sweep(_COMPACT[:1], [torch.float32, torch.bfloat16])
def test_autocast_gives_torchs_dtypes(
    backend: Backend, case: Case, dtype: torch.dtype, amp: torch.dtype
) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, amp)


def test_backward_keeps_the_indices_alone(kernels: Backend) -> None:
    weight = torch.randn(50, 16, device=kernels.device, requires_grad=True)
    index = torch.arange(30, device=kernels.device)
    assert checks.saved_for_backward(lambda: embedding(index, weight), weight, index) == 0


def test_tiny_lookups_are_torchs_own() -> None:
    weight = torch.randn(60, 16, requires_grad=True)
    assert "Embedding" in embedding(torch.arange(32), weight).grad_fn.name()
    assert "_Embedding" not in embedding(torch.arange(32), weight).grad_fn.name()
    assert "_Embedding" in embedding(torch.arange(60).repeat(2), weight).grad_fn.name()


def test_sparse_gradients_are_torchs_own(backend: Backend) -> None:
    weight = torch.randn(6, 4, device=backend.device, requires_grad=True)
    (grad,) = torch.autograd.grad(
        embedding(torch.tensor([1, 1], device=backend.device), weight, sparse=True).sum(), weight
    )
    assert grad.is_sparse
    assert torch.equal(grad.to_dense()[1].cpu(), torch.full((4,), 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(backend: Backend, dtype: torch.dtype) -> None:
    (info,) = op_infos("embedding")
    for sample in info.sample_inputs(backend.device, dtype, requires_grad=True):
        # The samples' wrapper has its arguments in another order: weight, indices.
        weights = [sample.input.detach().clone().requires_grad_() for _ in range(2)]
        found, wanted = (
            function(sample.args[0], w, **sample.kwargs)
            for function, w in zip((embedding, torch.nn.functional.embedding), weights, strict=True)
        )
        torch.testing.assert_close(found, wanted)
        upstream = torch.randn_like(wanted)
        grads = [
            torch.autograd.grad(y, w, upstream)[0] for y, w in zip((found, wanted), weights, strict=True)
        ]
        torch.testing.assert_close(grads[0], grads[1])
        torch.testing.assert_close(weights[0], weights[1])


# ----------------------------------------------------------------------------------------- renormalisation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [2.0, 1.0, 0.0, 3.0, 0.5, math.inf, -math.inf])
def test_max_norm_is_torchs(backend: Backend, order: float, dtype: torch.dtype) -> None:
    if not backend.thorough and dtype not in (torch.float32, torch.bfloat16):
        pytest.skip("too slow")
    weight = torch.randn(9, 21, dtype=torch.float64) * torch.arange(9)[:, None]
    # Between the norms of two rows, so that no rounding decides.
    norms = weight.norm(order, dim=1).sort().values.unique()
    limit = float((norms[len(norms) // 2 - 1] + norms[len(norms) // 2]) / 2)
    index = torch.tensor([[8, 3, 8], [1, 5, 0]])
    found, wanted = weight.to(backend.device, dtype, copy=True), weight.to(dtype, copy=True)
    y = embedding(index.to(backend.device), found, max_norm=limit, norm_type=order)
    torch.nn.functional.embedding(index, wanted, max_norm=limit, norm_type=order)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.cpu(), wanted, rtol=4 * eps, atol=0)
    assert torch.equal(y, found[index])


@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset"])
def test_max_norm_changes_a_strided_weight_in_place(backend: Backend, layout: str) -> None:
    plain = torch.randn(7, 10) * 3
    weight = LAYOUTS[layout](plain.clone())
    if backend.device != "cpu":
        weight = checks.on_device({"w": weight}, backend.device)["w"]
    index = torch.tensor([6, 0, 6])
    torch.nn.functional.embedding(index, plain, max_norm=1.0)
    embedding(index.to(backend.device), weight, max_norm=1.0)
    torch.testing.assert_close(weight.cpu(), plain)


def test_max_norm_leaves_rows_with_nan_and_short_rows(backend: Backend) -> None:
    weight = torch.tensor([[math.nan, 100.0], [0.1, 0.2], [0.0, 0.0], [30.0, 40.0]], device=backend.device)
    before = weight.clone()
    embedding(torch.tensor([0, 1, 2, 3, 3], device=backend.device), weight, max_norm=5.0)
    assert torch.equal(weight[:3].view(torch.int32), before[:3].view(torch.int32))
    torch.testing.assert_close(weight[3].cpu(), torch.tensor([3.0, 4.0]))


def test_max_norm_is_noticed_by_what_saved_the_weight(backend: Backend) -> None:
    weight = torch.ones(3, 4, device=backend.device, requires_grad=True)
    squares = (weight * weight).sum()
    version = weight._version
    output = embedding(torch.tensor([1], device=backend.device), weight, max_norm=0.5)
    assert weight._version > version
    (grad,) = torch.autograd.grad(output.sum(), weight)  # the renormalisation itself has no gradient
    assert torch.equal(grad[1].cpu(), torch.ones(4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


# ------------------------------------------------------------------------------------------------- modules


def test_module_is_torchs(backend: Backend) -> None:
    weight = torch.randn(6, 40)
    ours = pyops.nn.Embedding.from_pretrained(weight.clone(), freeze=False, padding_idx=-1, max_norm=4.0)
    theirs = torch.nn.Embedding.from_pretrained(weight.clone(), freeze=False, padding_idx=-1, max_norm=4.0)
    assert isinstance(ours, pyops.nn.Embedding)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert repr(ours) == repr(theirs)
    ours.to(backend.device)
    index = torch.randint(6, (7, 9))
    found, wanted = ours(index.to(backend.device)), theirs(index)
    torch.testing.assert_close(found.cpu(), wanted)
    found.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.weight.grad.cpu(), theirs.weight.grad)
    torch.manual_seed(1)
    first = pyops.nn.Embedding(5, 3, padding_idx=2).weight
    torch.manual_seed(1)
    assert torch.equal(first, torch.nn.Embedding(5, 3, padding_idx=2).weight)


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("bad", [-1, 6, -(2**40), 2**40])
def test_index_out_of_range(kernels: Backend, bad: int) -> None:
    weight = torch.full((6, 40), 9.0, device=kernels.device)
    before = weight.clone()
    index = torch.tensor([0, bad, 5], device=kernels.device)
    grad = torch.ones(3, 40, device=kernels.device)
    if kernels.name == "cpp":
        message = rf"index {bad} is out of range for a weight of 6 rows"
        with pytest.raises(RuntimeError, match=message):
            embedding(index, weight)
        with pytest.raises(RuntimeError, match=message):
            embedding(index, weight, max_norm=1.0)
        with pytest.raises(RuntimeError, match=message):
            raw(kernels, "embedding_backward")(grad, index, 6, -1, False)
        assert torch.equal(weight, before)
        return
    output = embedding(index, weight)
    assert output[1].isnan().all()
    assert torch.equal(output[[0, 2]], weight[[0, 5]])
    found = raw(kernels, "embedding_backward")(grad, index, 6, -1, False)
    assert torch.equal(found[:, 0].cpu(), torch.tensor([1.0, 0, 0, 0, 0, 1]))
    embedding(index, weight, max_norm=1.0)
    assert torch.equal(weight[1:5], before[1:5])


_WEIGHT, _INDEX = torch.zeros(50, 40), torch.zeros(30, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "input must be a Tensor, got list", {"input": [1]}),
        (TypeError, "weight must be a Tensor, got list", {"weight": [1.0]}),
        (TypeError, "input must hold int64 or int32 indices, got torch.float32", {"input": _INDEX.float()}),
        (TypeError, "input must hold int64 or int32 indices, got torch.uint8", {"input": _INDEX.byte()}),
        (ValueError, r"weight must have shape \(V, D\), got \(2000,\)", {"weight": _WEIGHT.view(-1)}),
        (ValueError, r"padding_idx must be in \[-50, 49\], got 50", {"padding_idx": 50}),
        (ValueError, r"padding_idx must be in \[-50, 49\], got -51", {"padding_idx": -51}),
        (RuntimeError, "weight must be on cpu.*got meta", {"weight": _WEIGHT.to("meta")}),
    ],
)
def test_bad_argument_is_named(error: type[Exception], message: str, change: dict) -> None:
    with pytest.raises(error, match=f"embedding: {message}"):
        embedding(**{"input": _INDEX, "weight": _WEIGHT, **change})


def test_meta_tensors_give_shapes() -> None:
    assert embedding(_INDEX.to("meta"), _WEIGHT.to("meta")).shape == (30, 40)


_GRAD = torch.zeros(30, 40)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("embedding_forward", (_WEIGHT[0], _INDEX)),
        ("embedding_forward", (_WEIGHT.long(), _INDEX)),
        ("embedding_forward", (_WEIGHT, _INDEX.float())),
        ("embedding_forward", (_WEIGHT, _INDEX[::2])),
        ("embedding_backward", (_GRAD[:29], _INDEX, 50, -1, False)),
        ("embedding_backward", (_GRAD[0], _INDEX, 50, -1, False)),
        ("embedding_backward", (torch.zeros(()), _INDEX, 50, -1, False)),
        ("embedding_backward", (torch.zeros(40, 30).t(), _INDEX, 50, -1, False)),
        ("embedding_backward", (_GRAD.long(), _INDEX, 50, -1, False)),
        ("embedding_backward", (_GRAD, _INDEX.short(), 50, -1, False)),
        ("embedding_backward", (_GRAD, _INDEX, -1, -1, False)),
        ("embedding_renorm_", (_WEIGHT[0], _INDEX, 1.0, 2.0)),
        ("embedding_renorm_", (_WEIGHT[:1].expand(50, 40), _INDEX, 1.0, 2.0)),
        ("embedding_renorm_", (_WEIGHT, _INDEX.bool(), 1.0, 2.0)),
    ],
)
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple) -> None:
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
    moved = checks.on_device(tensors, kernels.device)
    with pytest.raises(RuntimeError, match=op):
        raw(kernels, op)(*[moved.get(str(i), a) for i, a in enumerate(arguments)])
