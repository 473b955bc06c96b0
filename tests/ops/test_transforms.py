"""torch.func's transforms, torch.jit.trace, DTensor and torch.fx: by torch's formulas, whatever the op."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops import functional as F
from tests.ops.test_forward_mode import CALLS


def gradient(library: Any, call: str, x: Tensor) -> Tensor:
    return torch.func.grad(lambda x: CALLS[call](library, x).square().sum())(x)


@pytest.mark.parametrize("call", CALLS)
def test_transforms_of_every_op(call: str) -> None:
    """They raised that setup_context is missing, above the size up to which torch's op runs."""
    torch.manual_seed(0)
    xs = torch.randn(3, 2, 3, 12, 9, dtype=torch.float64)
    found, wanted = [], []
    for library, outcomes in ((F, found), (torch.nn.functional, wanted)):
        outcomes.append(gradient(library, call, xs[0]))
        outcomes.append(torch.func.vmap(lambda x, library=library: CALLS[call](library, x))(xs))
        outcomes.append(torch.func.vmap(lambda x, library=library: gradient(library, call, x))(xs))
    torch.testing.assert_close(found, wanted)
    with pyops.use_backend("cpp"):
        torch.testing.assert_close(gradient(F, call, xs[0]), wanted[0])


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_transforms_of_recurrent_layers(kind: str) -> None:
    layer, x = getattr(pyops.nn, kind)(20, 30), torch.randn(40, 8, 20)
    (wanted,) = torch.autograd.grad(layer(x.requires_grad_())[0].square().sum(), x)
    found = torch.func.grad(lambda x: layer(x)[0].square().sum())(x.detach())
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("call", CALLS)
def test_traces_of_every_op_can_be_saved(call: str) -> None:
    torch.manual_seed(0)
    x, other = torch.randn(2, 2, 3, 12, 9, dtype=torch.float64).unbind(0)
    with pyops.use_backend("cpp"):
        traced = torch.jit.trace(lambda x: CALLS[call](F, x), (x,), check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(other), CALLS[call](torch.nn.functional, other))


def test_fx_keeps_the_functions_of_modules_as_nodes() -> None:
    """Modules of pyops.nn are no leaves to torch.fx, which knows leaves by torch's package."""
    model = nn.Sequential(pyops.nn.Linear(30, 40, activation="tanh"), pyops.nn.LeakyReLU(0.3))
    graph = torch.fx.symbolic_trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [F.linear, F.leaky_relu]
    x = torch.randn(50, 30)
    torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("name", F.__all__)
def test_every_function_is_a_node_of_fx(name: str) -> None:
    graph = torch.fx.symbolic_trace(lambda x: getattr(F, name)(x))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [getattr(F, name)]


def test_a_stand_in_of_fx_says_how_to_go_on() -> None:
    linear = F.linear
    with pytest.raises(TypeError, match=r"call it as pyops.functional.linear"):
        torch.fx.symbolic_trace(lambda x: linear(x, x))
