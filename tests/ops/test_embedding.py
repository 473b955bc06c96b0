"""embedding: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import math

import pytest
import torch

import pyops
from pyops.functional import embedding
from tests.suite import checks
from tests.suite.backends import BACKENDS, Backend, activate, raw
from tests.suite.cases import DTYPES
from tests.suite.layouts import LAYOUTS
from tests.suite.torch_samples import op_infos

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------ accuracy


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


def test_gradient_is_dense_and_contiguous(kernels: Backend) -> None:
    weight = torch.randn(4, 6, device=kernels.device).t().requires_grad_()
    (grad,) = torch.autograd.grad(
        embedding(torch.tensor([1, 5], device=kernels.device), weight).sum(), weight
    )
    assert grad.is_contiguous()
    assert grad.layout is torch.strided


# ---------------------------------------------------------------------------------- gradients, dispatching


def test_second_derivative_of_scaled_gradients(backend: Backend) -> None:
    """They are meant to differ from the derivative: only their own derivative can be checked."""
    index = torch.tensor([[0, 3, 3], [1, 3, 0]], device=backend.device)
    weight = torch.randn(4, 3, dtype=torch.float64, device=backend.device, requires_grad=True)
    upstream = torch.randn(2, 3, 3, dtype=torch.float64, device=backend.device, requires_grad=True)

    def gradient(upstream):
        output = embedding(index, weight, padding_idx=1, scale_grad_by_freq=True)
        return torch.autograd.grad(output, weight, upstream, create_graph=True)[0]

    if backend.name != "reference":  # torch's own forgets the frequency here
        assert torch.autograd.gradcheck(gradient, (upstream,), fast_mode=not backend.thorough)


def test_opcheck_of_renorm(kernels: Backend) -> None:
    weight = torch.randn(4, 5, device=kernels.device) * 3
    arguments = (weight, torch.tensor([1, 2, 1], device=kernels.device), 1.0, 2.0)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(raw(kernels, "embedding_renorm_"), arguments, test_utils=utilities)


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


def test_backward_keeps_the_indices_alone(kernels: Backend) -> None:
    weight = torch.randn(50, 16, device=kernels.device, requires_grad=True)
    index = torch.arange(30, device=kernels.device)
    assert checks.saved_for_backward(lambda: embedding(index, weight), weight, index) == 0


def test_tiny_lookups_are_torchs_own() -> None:
    weight = torch.randn(60, 16, requires_grad=True)
    assert "Embedding" in embedding(torch.arange(32), weight).grad_fn.name()
    assert "_Embedding" not in embedding(torch.arange(32), weight).grad_fn.name()
    assert "_Embedding" in embedding(torch.arange(60).repeat(20), weight).grad_fn.name()


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
        with pytest.raises(IndexError, match=message):
            embedding(index, weight)
        with pytest.raises(IndexError, match=message):
            embedding(index, weight, max_norm=1.0)
        with pytest.raises(IndexError, match=message):
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
