"""Chains: layers in a row as one node of autograd, bit for bit what they are one by one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import pyops
from pyops import backends
from pyops.convert import chain as chains
from pyops.convert.chain import Chain

NODE = "ChainFunctionBackward"


RULE = backends._TINY, backends.TORCH_IS_FASTER


@pytest.fixture(autouse=True)
def small_tensors_are_not_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one by one the layers of these small models would be torch's."""
    monkeypatch.setattr(backends, "_TINY", (-1, -1))
    monkeypatch.setattr(backends, "TORCH_IS_FASTER", dict.fromkeys(backends.TORCH_IS_FASTER, (-1, -1)))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(35, 17), nn.ReLU(), nn.Dropout(0.3), nn.Linear(17, 13, bias=False), nn.Tanh(),
        nn.Linear(13, 5),
    )  # fmt: skip


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2), nn.Conv2d(6, 7, 3, bias=False),
        nn.Flatten(), nn.Linear(7 * 3 * 3, 11), nn.GELU(), nn.Linear(11, 5),
    )  # fmt: skip


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.SiLU(),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (31, 5, 7)),
    "lenet": (lenet, (29, 2, 11, 11)),
    "pooled": (pooled, (23, 2, 13, 11)),
}
by_model = pytest.mark.parametrize("name", MODELS)


def made(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A converted model that knows its input, and that."""
    make, shape = MODELS[name]
    torch.manual_seed(7)
    model = pyops.convert(make().to(dtype))
    input = torch.randn(shape, dtype=dtype)
    model(input)
    return model, input


def is_chained(model: nn.Module, input: Tensor) -> bool:
    return NODE in str(model(input).grad_fn)


def results(model: nn.Module, input: Tensor) -> list[Tensor | None]:
    """Output, and gradients of input and parameters."""
    torch.manual_seed(11)
    model.zero_grad()
    input = input.clone().requires_grad_()
    output = model(input)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    return [output.detach(), input.grad, *(p.grad for p in model.parameters())]


def one_by_one(model: nn.Module, input: Tensor) -> list[Tensor | None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chain, "__call__", Chain._one_by_one)
        assert not is_chained(model, input)
        return results(model, input)


def assert_same(model: nn.Module, input: Tensor) -> None:
    for ours, theirs in zip(results(model, input), one_by_one(model, input), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


@by_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_chain_is_one_node_and_computes_the_same_bits(name: str, dtype: torch.dtype) -> None:
    model, input = made(name, dtype)
    output = model(input)
    assert NODE in str(output.grad_fn)
    leaves = {type(node).__name__ for node, _ in output.grad_fn.next_functions if node is not None}
    assert leaves == {"AccumulateGrad"}
    assert_same(model, input)
    assert_same(model, torch.randn_like(input))


@by_model
def test_frozen_parameters_get_no_gradient(name: str) -> None:
    model, input = made(name)
    parameters = list(model.parameters())
    for frozen in ([0], [1, 2], list(range(len(parameters) - 1)), []):
        for place, parameter in enumerate(parameters):
            parameter.requires_grad_(place not in frozen)
        assert is_chained(model, input)
        assert_same(model, input)
        model.zero_grad()
        model(input).sum().backward()  # an input without gradient
        assert [place for place, p in enumerate(parameters) if p.grad is None] == frozen
    model.requires_grad_(False)
    assert not model(input).requires_grad


@by_model
def test_gradients_can_be_differentiated_again(name: str) -> None:
    model, input = made(name, torch.float64)
    parameters = [input.requires_grad_(), *model.parameters()]

    def twice() -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        output = model(input)
        first = torch.autograd.grad(output.square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters, allow_unused=True)

    assert is_chained(model, input)
    ours = twice()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chain, "__call__", Chain._one_by_one)
        theirs = twice()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_layer_that_is_used_twice_has_the_sum_of_its_gradients() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(13, 13).double()
    model = pyops.convert(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer))
    twin = nn.Sequential(*copy.deepcopy(pyops.revert(copy.deepcopy(model))))
    input = torch.randn(3, 13, dtype=torch.float64)
    model(input)
    assert is_chained(model, input)
    (ours,) = torch.autograd.grad(model(input).square().sum(), [layer.weight], create_graph=True)
    (theirs,) = torch.autograd.grad(twin(input).square().sum(), [twin[0].weight], create_graph=True)
    torch.testing.assert_close(ours, theirs)
    (ours,) = torch.autograd.grad(ours.square().sum(), [layer.weight])
    (theirs,) = torch.autograd.grad(theirs.square().sum(), [twin[0].weight])
    torch.testing.assert_close(ours, theirs)


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    model, input = made("lenet")
    output = model(input)
    first = torch.autograd.grad(output.sum(), list(model.parameters()), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(output.sum(), list(model.parameters()))))
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()
    output = model(input)
    with torch.no_grad():
        model[-1].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_hook_on_any_layer_is_called_and_ends_the_chain() -> None:
    model, input = made("lenet")
    for layer in model:
        calls: list[nn.Module] = []
        for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
            handle = register(lambda module, *_, calls=calls: calls.append(module))
            assert not is_chained(model, input)
            assert calls.pop() is layer
            handle.remove()
        handle = layer.register_full_backward_hook(lambda module, *_, calls=calls: calls.append(module))
        model(input.clone().requires_grad_()).sum().backward()
        assert calls == [layer]
        handle.remove()
        assert is_chained(model, input)


def test_hooks_of_parameters_are_called() -> None:
    model, input = made("mlp")
    plain = results(model, input)
    model[1].weight.register_hook(lambda grad: 2 * grad)
    hooked = results(model, input)
    assert torch.equal(hooked[2], 2 * plain[2])
    assert torch.equal(hooked[3], plain[3])


def test_layers_that_change_are_seen() -> None:
    model, input = made("mlp")
    dropout = model[3]
    for p, training in ((0.5, True), (0.0, True), (0.5, False), (1.0, True)):
        dropout.p = p
        dropout.train(training)
        model(input)
        assert is_chained(model, input)
        assert_same(model, input)
    model, input = made("lenet")
    model[2].stride = 1
    with pytest.raises(RuntimeError):  # the linear layer's size is another one
        model(input)
    model[2].stride = 2
    model[3].padding_mode = "reflect"
    model(input)
    assert not is_chained(model, input)
    model[3].padding_mode = "zeros"
    model[7].forward = lambda x: 3 * x  # an instance's own forward
    assert torch.equal(model(input), model(input))
    assert model(input).shape[-1] == 11


def test_parameters_that_change_are_seen() -> None:
    model, input = made("mlp")
    model[1].weight = nn.Parameter(torch.randn(17, 35))
    assert is_chained(model, input)
    assert_same(model, input)
    model[6] = pyops.nn.Linear(13, 3)
    assert model(input).shape == (31, 3)
    model, input = made("mlp")
    prune.random_unstructured(model[1], "weight", 0.5)
    assert not is_chained(model, input)
    assert_same(model, input)
    model, input = made("mlp")
    parametrize.register_parametrization(model[6], "weight", nn.Softplus())
    assert not is_chained(model, input)
    model, input = made("mlp")
    model.double()
    assert model(input.double()).dtype is torch.float64


def test_wrong_inputs_get_the_errors_of_the_layers() -> None:
    model, input = made("mlp")
    with pytest.raises(RuntimeError, match="linear"):
        model(torch.randn(31, 5, 8))
    with pytest.raises(RuntimeError):
        model(input.double())
    assert is_chained(model, input)
    model, input = made("lenet")
    with pytest.raises(ValueError, match="conv2d: the weight has 2 channels"):
        model(torch.randn(29, 3, 11, 11))


def test_modes_and_transforms_go_from_layer_to_layer() -> None:
    model, input = made("lenet")
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input)
        assert output.dtype is torch.bfloat16
        assert NODE not in str(output.grad_fn)
    with torch.no_grad():
        assert not model(input).requires_grad
    assert not is_chained(model, input.to(memory_format=torch.channels_last))
    with pyops.use_backend("reference"):
        assert not is_chained(model, input)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        loss = lambda weights: torch.func.functional_call(model, weights, (input,)).sum()  # noqa: E731
        found = torch.func.grad(loss)(weights)
    (expected,) = torch.autograd.grad(model(input).sum(), [model[0].weight])
    torch.testing.assert_close(found["0.weight"], expected)
    assert is_chained(model, input)


def test_the_compiler_sees_the_layers() -> None:
    model, input = made("lenet")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(input), model(input))
    compiled(input).sum().backward()


def test_checkpointed_layers_are_computed_again_as_they_were() -> None:
    make, shape = MODELS["lenet"]
    model = pyops.convert(make())
    input = torch.randn(shape, requires_grad=True)
    for _ in range(3):  # the first call would be the only one outside of a chain
        output = checkpoint(model, input, use_reentrant=False)
        output.sum().backward()


def test_large_activations_are_not_kept_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "_MOST_BYTES", 1000)
    model, input = made("lenet")
    assert not is_chained(model, input)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_chains_of_their_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, input = made("mlp")
    other = copied(model)
    with torch.no_grad():
        other[6].bias.add_(1)
    model.eval()
    other.eval()
    other(input)
    assert is_chained(other, input)
    torch.testing.assert_close(other(input), model(input) + 1)


@by_model
@pytest.mark.parametrize("most_bytes", [chains._MOST_BYTES, 1000])
def test_the_first_call_leaves_small_layers_to_torch_no_more_than_the_second(
    name: str, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run's first step had other last bits than that step of the run that went on."""
    monkeypatch.setattr(chains, "_MOST_BYTES", most_bytes)
    monkeypatch.setattr(backends, "_TINY", RULE[0])
    monkeypatch.setattr(backends, "TORCH_IS_FASTER", RULE[1])
    make, shape = MODELS[name]
    model, input = pyops.convert(make()), torch.randn(shape)
    left = []
    prefers = backends.prefers_torch
    monkeypatch.setattr(
        backends, "prefers_torch", lambda *args, **more: left.append(prefers(*args, **more)) or left[-1]
    )
    first, second = results(model, input), results(model, input)
    assert not any(left)
    for a, b in zip(first, second, strict=True):
        assert a is None or torch.equal(a, b)
    with torch.no_grad():
        model(input)
    assert any(left)


def test_an_empty_batch() -> None:
    model, input = made("lenet")
    model(input[:0])
    assert_same(model, input[:0])
