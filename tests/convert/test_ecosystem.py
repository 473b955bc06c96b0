"""pyops.convert: what torch and others do with models works on converted ones, or says how to go on."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

import pyops
from tests.suite.conversion import Net, fused_in
from tests.suite.processes import run_python


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = getattr(nn, kind)(12, 20, num_layers=2, bidirectional=True)
        self.out = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x)[0])


def plain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 5, 2, 1, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.0), nn.Linear(64, 10)),
    )


def pair_of(make: Callable[[], nn.Module] = plain) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    model = make()
    return pyops.convert(copy.deepcopy(model)), model


IMAGES = (16, 3, 14, 13)
X = torch.randn(IMAGES)


def test_symbolic_trace_has_the_layers_as_leaves() -> None:
    converted, model = pair_of()
    graphs = [torch.fx.symbolic_trace(m) for m in (converted, model)]
    found, wanted = ([(n.op, n.target) for n in g.graph.nodes] for g in graphs)
    assert found == wanted
    torch.testing.assert_close(graphs[0](X), model(X))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("mode", [True, False])
def test_traces_are_saved_and_loaded_without_pyops(mode: bool, tmp_path: Path) -> None:
    converted, model = (m.train(mode) for m in pair_of())
    traced = torch.jit.trace(converted, X)
    torch.jit.save(traced, tmp_path / "traced.pt")
    loaded = torch.jit.load(tmp_path / "traced.pt")
    y = torch.randn(5, *IMAGES[1:])
    model.load_state_dict(converted.state_dict())
    torch.testing.assert_close(loaded(y), model(y))
    assert fused_in(converted)
    assert "pyops" not in str(loaded.inlined_graph)
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(y), copy.deepcopy(converted)(y))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling")
def test_export_with_a_batch_of_any_size(strict: bool) -> None:
    """The rule for small tensors specialised it."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    for make in (plain, lambda: nn.Sequential(nn.Linear(4, 8), nn.Softmax(1), nn.Sigmoid(), nn.Linear(8, 3))):
        converted, model = (m.eval() for m in pair_of(make))
        shape = IMAGES[1:] if make is plain else (4,)
        program = torch.export.export(
            converted, (torch.randn(16, *shape),), dynamic_shapes=({0: batch},), strict=strict
        )
        for size in (1, 2, 16, 300):
            x = torch.randn(size, *shape)
            torch.testing.assert_close(program.module()(x), model(x))


COUNTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (plain, IMAGES),
    "residual": (Net, IMAGES),
    "small": (lambda: nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2)), (3, 7)),
    "sequences of rows": (lambda: nn.Sequential(nn.Linear(70, 80), nn.Tanh()), (3, 9, 70)),
    **{kind: ((lambda kind=kind: Recurrent(kind)), (9, 4, 12)) for kind in ("RNN", "LSTM", "GRU")},
}


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("of_input", [False, True])
def test_a_converted_model_counts_as_many_flops(name: str, of_input: bool) -> None:
    make, shape = COUNTED[name]
    counts = []
    for model in pair_of(make):
        # oneDNN's LSTM is one op that torch does not count.
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as forward:
            y = model(torch.randn(shape, requires_grad=of_input))
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as backward:
            y.sum().backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


def test_the_flops_of_a_linear_cross_entropy() -> None:
    counts = []
    for library in (pyops.functional, None):
        h, w = torch.randn(300, 20, requires_grad=True), torch.randn(500, 20, requires_grad=True)
        target = torch.randint(500, (300,))
        with FlopCounterMode(display=False) as counter:
            if library is None:
                nn.functional.cross_entropy(h @ w.t(), target).backward()
            else:
                library.linear_cross_entropy(h, w, target).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 300 * 20 * 500


def test_importing_pyops_imports_no_flop_counter() -> None:
    script = """
import sys, pyops, torch
assert "torch.utils.flop_counter" not in sys.modules
finders = len(sys.meta_path)
import torch.utils.flop_counter as counter
assert torch.ops.pyops.linear_forward in counter.flop_registry
assert len(sys.meta_path) == finders - 1
"""
    run_python("-c", script)


def test_functional_transforms_of_a_model() -> None:
    converted, model = (m.eval() for m in pair_of())
    found, wanted = [], []
    for m, outcome in ((converted, found), (model, wanted)):
        tensors = {n: p.detach() for n, p in m.named_parameters()}, dict(m.named_buffers())

        def loss(parameters: dict[str, Tensor], x: Tensor, m: nn.Module = m, buffers=tensors[1]) -> Tensor:
            return torch.func.functional_call(m, (parameters, buffers), (x[None],)).square().sum()

        outcome.append(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(tensors[0], X))
        outcome.append(torch.func.jacrev(m)(X[:2]))
        outcome.append(torch.func.vmap(m)(X.view(4, 4, *IMAGES[1:])))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore:.*deprecated:UserWarning")
def test_dynamic_quantisation_finds_its_layers() -> None:
    kinds = {nn.Linear, nn.LSTM}
    for make, x in ((plain, X), (lambda: Recurrent("LSTM"), torch.randn(9, 4, 12))):
        converted, model = (torch.ao.quantization.quantize_dynamic(m.eval(), kinds) for m in pair_of(make))
        assert [type(m) for m in converted.modules()] == [type(m) for m in model.modules()]
        assert any("quantized" in type(m).__module__ for m in converted.modules())
        torch.testing.assert_close(converted(x), model(x))


def test_pruned_layers_and_their_copies() -> None:
    models = pair_of()
    for m in models:
        prune.l1_unstructured(m[8], "weight", amount=0.5)
        prune.random_structured(m[0], "weight", amount=2, dim=0)
    converted, model = models
    prune.l1_unstructured(converted[11], "weight", amount=0.25)
    prune.l1_unstructured(model[11], "weight", amount=0.25)
    for name in ("0", "8", "11"):
        mask = model.get_submodule(name).weight_mask
        converted.get_submodule(name).weight_mask.copy_(mask)
    torch.testing.assert_close(converted(X), model(X))
    with torch.no_grad():
        for m in models:
            m(X)
    torch.testing.assert_close(copy.deepcopy(converted)(X), copy.deepcopy(model)(X))
    for m in models:
        for name in ("0", "8", "11"):
            prune.remove(m.get_submodule(name), "weight")
    torch.testing.assert_close(copy.deepcopy(converted)(X), model(X))


def test_the_module_tracker_knows_where_it_is() -> None:
    seen: list[list[set[str]]] = []
    for model in pair_of(Net):
        seen.append([])
        for module in model.modules():
            module.register_forward_hook(lambda *_: seen[-1].append(set(tracker.parents)))
        with ModuleTracker() as tracker:
            model(X).sum().backward()
    assert seen[0] == seen[1]


def test_a_profile_names_the_kernels() -> None:
    converted, _ = pair_of()
    converted(X)
    with torch.profiler.profile() as profile:
        converted(X).sum().backward()
    names = {event.key for event in profile.key_averages()}
    wanted = {"conv2d_forward", "batch_norm_forward", "conv2d_max_pool2d_forward", "linear_forward"}
    assert {f"pyops::{name}" for name in wanted} <= names
    assert {"pyops::conv2d_backward", "pyops::linear_backward"} <= names


_PARALLEL = """
import sys, torch, pyops
from torch import nn
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from tests.suite.processes import end_process_of_group
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
torch.set_num_threads(1)
mesh = init_device_mesh("cpu", (2,))
def outcome(convert):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 80)).double()
    if convert: pyops.convert(model)
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    y = model(torch.randn(50, 40, dtype=torch.float64))
    y.square().sum().backward()
    return [y.detach(), *(p.grad.full_tensor() for p in model.parameters())]
torch.testing.assert_close(outcome(True), outcome(False))
end_process_of_group()
"""


def test_tensor_parallel_layers(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_python, "-c", _PARALLEL, str(rank), f"{tmp_path}/store") for rank in range(2)]
        for run in runs:
            run.result()


def test_whole_models_in_files_of_torch() -> None:
    converted, _ = pair_of(Net)
    file = io.BytesIO()
    torch.save({"model": converted.eval(), "forward": converted.stem[0].forward}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded["model"](X), converted(X))
    torch.testing.assert_close(loaded["forward"](X), converted.stem[0](X))
