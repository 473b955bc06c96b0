"""pyops.convert: copies, files, optimizers, compilers, processes."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import pyops
from tests.suite.conversion import Calls, Net, conv, fused_in, images
from tests.suite.processes import run_python


def test_copies_are_converted_and_independent() -> None:
    converted = pyops.convert(Net().double())
    clone = copy.deepcopy(converted)
    assert fused_in(clone) == fused_in(converted)
    assert not set(clone.parameters()) & set(converted.parameters())
    x = images()
    torch.testing.assert_close(clone.eval()(x), converted.eval()(x))
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert not torch.equal(clone(x), converted(x))
    assert type(pyops.revert(clone)) is Net
    assert fused_in(converted)


def test_save_and_load() -> None:
    converted = pyops.convert(Net().double())
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert fused_in(loaded) == fused_in(converted)
    x = images()
    torch.testing.assert_close(loaded.eval()(x), converted.eval()(x))
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    plain = Net().double()
    plain.load_state_dict(torch.load(file))
    torch.testing.assert_close(plain.eval()(x), converted(x))


def test_shallow_copy() -> None:
    converted = pyops.convert(nn.Sequential(conv(), nn.ReLU()))
    clone = copy.copy(converted)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(clone(x), converted(x))
    assert clone[0] is converted[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_change_of_dtype(dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    converted = pyops.convert(Net()).to(dtype)
    converted.load_state_dict(model.state_dict())
    x = torch.randn(3, 3, 14, 13, dtype=dtype)
    found = converted.eval()(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, model.eval()(x), rtol=3e-2, atol=3e-2)


def test_autocast() -> None:
    model = Net()
    model.stem[1] = nn.Softplus()  # which autocast computes in float32
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(3, 3, 14, 13)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = converted(x), model(x)
    assert found.dtype is wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2)
    residual = Calls(lambda m, x: m.conv(x) + x, conv=conv())
    with torch.autocast("cpu", torch.bfloat16):
        assert pyops.convert(copy.deepcopy(residual))(x).dtype is residual(x).dtype is torch.float32


def test_optimizers_keep_their_parameters() -> None:
    outcomes = []
    for convert in (True, False):
        torch.manual_seed(1)
        model = Net().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(4):
            if convert and step == 1:
                pyops.convert(model)
            if convert and step == 3:
                pyops.revert(model)
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(images()).square().sum().backward()
            optimizer.step()
        outcomes.append(dict(model.named_parameters()))
    torch.testing.assert_close(*outcomes)


def test_functional_call_with_other_parameters() -> None:
    model = Net().double().eval()
    converted = pyops.convert(copy.deepcopy(model))
    x = images()
    with torch.no_grad():
        converted(x)  # folds the present ones
        others = {name: p * 2 for name, p in model.named_parameters()}
        found, wanted = (torch.func.functional_call(m, others, (x,)) for m in (converted, model))
    torch.testing.assert_close(found, wanted)


def test_replicas_of_data_parallel_use_their_own_parameters() -> None:
    converted = pyops.convert(nn.Sequential(conv(), nn.ReLU()))
    replica, layer = converted._replicate_for_data_parallel(), converted[0]._replicate_for_data_parallel()
    layer._parameters = {}
    layer.weight, layer.bias = torch.zeros_like(converted[0].weight), torch.zeros(3)
    replica._modules["0"] = layer
    assert not replica(torch.randn(1, 3, 4, 4)).any()


def test_fx_traces_the_forward_that_was_written() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return not list(m.children())

    converted = pyops.convert(Net())
    targets = [str(n.target) for n in Tracer().trace(converted).nodes if n.op == "call_module"]
    assert targets[:4] == ["stem.0", "stem.1", "stem.2", "blocks.0.conv1"]


def test_compile() -> None:
    body = Calls(lambda m, x: nn.functional.relu(m.norm(m.conv(x)) + x), conv=conv(), norm=nn.BatchNorm2d(3))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(546, 5), nn.ReLU()).double()
    converted = pyops.convert(copy.deepcopy(model))
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    for mode in (True, False):
        for m in (converted, model):
            m.train(mode)
        x = images()
        outputs = compiled(x), model(x)
        torch.testing.assert_close(*outputs)
        gradients = [torch.autograd.grad(y.square().sum(), x) for y in outputs]
        torch.testing.assert_close(*gradients)
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model.eval()(x))
    for m in (model, converted):
        m[3] = nn.Sigmoid()
        m[0].norm = nn.Identity()
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling")
def test_export(strict: bool) -> None:
    model = Net().eval()
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(3, 3, 14, 13)
    program = torch.export.export(converted, (x,), strict=strict)
    assert sorted(program.state_dict) == sorted(model.state_dict())
    torch.testing.assert_close(program.module()(x), model(x))


_DDP = """
import sys, torch, pyops
from torch import nn
import torch.distributed as dist
from tests.suite.conversion import Net
from tests.suite.processes import end_process_of_group
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
torch.set_num_threads(1)
def steps(convert):
    torch.manual_seed(rank)
    model = Net().double()
    if convert == "before": pyops.convert(model)
    model = nn.parallel.DistributedDataParallel(model)
    if convert == "after": pyops.convert(model)
    if convert: assert any(e.action == "fused" for e in pyops.conversion_report(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        torch.manual_seed(10 * rank + step)
        optimizer.zero_grad()
        model(torch.randn(3 + rank, 3, 14, 13, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return list(model.parameters())
wanted = steps(None)
for convert in ("before", "after"):
    torch.testing.assert_close(steps(convert), wanted)
end_process_of_group()
"""


def test_distributed_data_parallel(tmp_path: object) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_python, "-c", _DDP, str(rank), f"{tmp_path}/store") for rank in range(2)]
        for run in runs:
            run.result()
