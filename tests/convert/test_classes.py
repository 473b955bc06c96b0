"""pyops.convert keeps the class of every module: what others decide by, and how copies keep a forward."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyops
from pyops.convert.swap import computing_type
from tests.suite.conversion import Net, actions_of, conv, fused_in
from tests.suite.processes import run_python

REQUIRED: dict[str, Any] = {
    "num_features": 4, "num_embeddings": 5, "embedding_dim": 4, "in_features": 4, "out_features": 3,
    "in_channels": 2, "out_channels": 3, "kernel_size": 3, "output_size": 2, "input_size": 4,
    "hidden_size": 3, "num_classes": 3, "normalized_shape": 4, "num_groups": 1, "num_channels": 4,
}  # fmt: skip
KINDS = [name for name in pyops.nn.__all__ if hasattr(torch.nn, name)]


def make(name: str) -> nn.Module:
    """A module of torch's class, with the arguments that it needs."""
    kind = getattr(torch.nn, name)
    parameters = inspect.signature(getattr(pyops.nn, name)).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    options = {"scale_factor": 2} if name.startswith("Upsampl") else {n: REQUIRED[n] for n in needed}
    module: nn.Module = kind(**options)
    return module


def arguments(name: str) -> tuple[Any, ...]:
    if name == "Embedding":
        return (torch.tensor([[0, 4], [1, 1]]),)
    if name in ("CrossEntropyLoss", "NLLLoss", "LinearCrossEntropyLoss"):
        return (torch.randn(3, 4), torch.tensor([0, 2, 1]))
    if name.endswith("Loss"):
        return (torch.randn(3, 4), torch.rand(3, 4))
    channels = 4 if "Norm" in name else 2
    if "Conv1d" in name:
        return (torch.randn(2, channels, 7),)
    is_image = "2d" in name or name == "Upsample"
    return (torch.randn(2, channels, 6, 7) if is_image else torch.randn(3, 4),)


def tensors(result: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(result)


def copies(module: nn.Module) -> list[nn.Module]:
    """The module and, where torch can copy such a one, its copies."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return [module]
    return [module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))]


@pytest.mark.parametrize("name", [name for name in KINDS if name != "SyncBatchNorm"])
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_every_kind_keeps_its_class_and_computes_as_torchs(name: str) -> None:
    torch.manual_seed(1)
    reference, inputs = make(name).eval(), arguments(name)
    wanted = tensors(reference(*inputs))
    torch.manual_seed(1)
    module = make(name).eval()
    inputs = arguments(name)
    kind, signature = type(module), inspect.signature(module.forward)
    assert type(pyops.convert(module)) is kind
    assert computing_type(module) is getattr(pyops.nn, name)
    assert inspect.signature(module.forward) == signature
    for clone in copies(module):
        torch.testing.assert_close(tensors(clone(*inputs)), wanted)
        assert actions_of(clone)[""] == "replaced"
    pyops.revert(module)
    assert "forward" not in vars(module)
    assert actions_of(module)[""] == "left"


def test_rules_by_the_type_of_a_layer() -> None:
    """As of the notes: ``if type(m) == nn.Linear``."""

    def init(module: nn.Module) -> None:
        if type(module) is nn.Linear:
            nn.init.constant_(module.weight, 0.5)

    model = pyops.convert(Net())
    model.apply(init)
    assert (model.hidden.weight == 0.5).all()
    assert type(model) is Net
    assert type(model.stem) is nn.Sequential
    assert isinstance(pyops.convert(nn.LSTM(3, 4)), nn.LSTM)


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_file])
def test_a_copys_forwards_are_its_own(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = pyops.convert(Net().eval())
    clone = copied(copied(model))
    assert fused_in(clone) == fused_in(model)
    assert actions_of(clone) == actions_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    x = torch.randn(3, 3, 14, 13)
    assert clone(x).isfinite().all()
    assert clone.stem[0](x).isfinite().all()
    del model
    assert clone.stem[0](x).isfinite().all()


def test_a_shallow_copy_has_attributes_of_its_own() -> None:
    layer = pyops.convert(nn.Dropout(0.5))
    clone = copy.copy(layer).eval()
    x = torch.ones(500)
    assert torch.equal(clone(x), x)
    assert not torch.equal(layer(x), x)


def test_a_layer_is_freed_without_the_garbage_collector() -> None:
    # torch's lazy ones are part of a cycle from the start.
    layers = [pyops.convert(make(name)) for name in KINDS if not name.startswith("Lazy")]
    gc.collect()
    gc.disable()
    try:
        freed = [weakref.ref(layer) for layer in layers]
        layers.clear()
        assert all(reference() is None for reference in freed)
    finally:
        gc.enable()


def test_a_forward_without_its_module_says_so() -> None:
    forward = pyops.convert(nn.Linear(3, 4)).forward
    gc.collect()
    with pytest.raises(ReferenceError, match="keep the module"):
        forward(torch.randn(2, 3))


def test_a_forward_around_ours_stays_and_counts_as_the_models() -> None:
    """As tools for offloading do: keep the forward, put another there, take it away again."""
    model = pyops.convert(nn.Sequential(conv(), nn.ReLU()))
    layer, x = model[0], torch.randn(2, 3, 5, 5)
    wanted = model(x)
    before = layer.forward
    layer.forward = lambda input: before(input) - 100
    assert not model(x).any()
    assert not pyops.convert(model)(x).any()
    layer.forward = before
    torch.testing.assert_close(pyops.convert(model)(x), wanted)
    assert fused_in(model) == ["0 + 1"]


def test_parameters_that_are_swapped() -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = Net().eval()
        converted = pyops.convert(copy.deepcopy(model))
        x = torch.randn(3, 3, 14, 13)
        with torch.no_grad():
            converted(x)
            torch.testing.assert_close(converted.double()(x.double()), model.double()(x.double()))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_packed_weights_are_given_back_before_they_move() -> None:
    from pyops.ops.tools import packed

    layer = pyops.convert(nn.Conv2d(64, 64, 3, padding=1)).eval()
    kept = packed._kept
    for change in (lambda: layer.train(), lambda: layer.double()):
        layer.float().eval()
        with torch.no_grad():
            for _ in range(2):
                layer(torch.randn(1, 64, 14, 14))
        assert id(layer.weight) in kept
        change()
        assert id(layer.weight) not in kept


_FULLY_SHARDED = """
import sys, torch, pyops
from torch import nn
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tests.suite.conversion import Net
from tests.suite.processes import end_process_of_group
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
def outcome(convert):
    torch.manual_seed(1)
    model = Net().double()
    if convert: pyops.convert(model)
    for part in (model.stem[0], model.blocks[0], model.hidden, model): fully_shard(part, mesh=mesh)
    torch.manual_seed(2)
    y = model(torch.randn(3, 3, 14, 13, dtype=torch.float64))
    y.square().sum().backward()
    assert isinstance(model.hidden, nn.Linear)
    return [y.detach(), *(p.grad.full_tensor() for p in model.parameters())]
torch.testing.assert_close(outcome(True), outcome(False))
end_process_of_group()
"""


def test_fully_sharded_data_parallel(tmp_path: Path) -> None:
    run_python("-c", _FULLY_SHARDED, f"{tmp_path}/store")


def test_script_says_how_to_go_on() -> None:
    model = pyops.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    with pytest.raises(TypeError, match=r"pyops.revert\(model\) first"):
        torch.jit.script(model)
    x = torch.randn(2, 3)
    torch.testing.assert_close(torch.jit.script(pyops.revert(model))(x), model(x))
