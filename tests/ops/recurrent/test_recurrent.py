"""Recurrent layers and cells: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import pyops
import pyops.functional as F
from tests.suite import checks
from tests.suite.backends import Backend
from tests.suite.ops.recurrent import GATES, case

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


@pytest.mark.parametrize("op", GATES)
def test_nan_stays_in_its_sequence(kernels: Backend, op: str) -> None:
    tensors = case("nan", op, 3, 4, 3, 5).tensors(torch.float32)
    tensors["input"][1, 2, 0] = torch.nan
    output = checks.OPS[op].pyops(**{k: t.to(kernels.device) for k, t in tensors.items()})[0].cpu()
    special = ~output.isfinite()
    assert special[1:, 2].all()
    assert special.sum() == special[1:, 2].sum()


# ------------------------------------------------------------------------------ gradients, compile, threads


@pytest.mark.parametrize("op", GATES)
def test_only_what_is_needed_is_computed(kernels: Backend, op: str) -> None:
    tensors = case("needs", op, 3, 4, 3, 5).tensors(torch.float64)
    tensors = {k: t.to(kernels.device) for k, t in tensors.items()}
    call = checks.OPS[op].pyops
    leaves = {k: t.clone().requires_grad_() for k, t in tensors.items()}
    wanted = torch.autograd.grad(call(**leaves)[0].sum(), list(leaves.values()))
    for name, gradient in zip(leaves, wanted, strict=True):
        leaf = tensors[name].clone().requires_grad_()
        found = torch.autograd.grad(call(**{**tensors, name: leaf})[0].sum(), leaf)[0]
        torch.testing.assert_close(found, gradient)
    assert not call(**tensors)[0].requires_grad


@pytest.mark.parametrize("op", GATES)
def test_gradient_from_the_last_state_alone(kernels: Backend, op: str) -> None:
    tensors = case("state", op, 3, 4, 3, 5, sizes=(4, 2, 2)).tensors(torch.float64)
    tensors = {k: t.to(kernels.device) if k != "batch_sizes" else t for k, t in tensors.items()}
    for at in (1, 2) if op == "lstm" else (1,):
        found = []
        for call in (checks.OPS[op].pyops, checks.OPS[op].torch):
            x = tensors["input"].clone().requires_grad_()
            found.append(torch.autograd.grad(call(**{**tensors, "input": x})[at].sum(), x)[0])
        torch.testing.assert_close(*found)


# ------------------------------------------------------------------------------------------------- modules


def _pair(name: str, *arguments, **options) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(*arguments, **options)
    torch.manual_seed(1)
    ours = getattr(pyops.nn, name)(*arguments, **options)
    return ours, theirs


_KINDS: list[tuple[str, dict]] = [
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("GRU", {}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
]
# Layers, both directions, bias, batch_first, packed.
_SHAPES = [
    (1, False, True, False, False),
    (2, True, True, True, True),
    (2, True, False, False, False),
    (1, True, True, True, False),
    (1, False, False, False, True),
]
_MODULES = [
    (name, {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": first, **more}, packed)
    for name, more in _KINDS
    for layers, both, bias, first, packed in _SHAPES
]


@pytest.mark.parametrize(("name", "options", "packed"), _MODULES)
def test_module_is_torchs(name: str, options: dict, packed: bool) -> None:
    ours, theirs = _pair(name, 5, 7, **options, dtype=torch.float64)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), "the initial parameters differ"
    assert repr(ours) == repr(theirs)
    theirs.load_state_dict(ours.state_dict())
    layers = options["num_layers"] * (1 + options["bidirectional"])
    x = torch.randn(4, 4, 5, dtype=torch.float64)
    h = torch.randn(layers, 4, options.get("proj_size", 7), dtype=torch.float64)
    hx = (h, torch.randn(layers, 4, 7, dtype=torch.float64)) if name == "LSTM" else h
    input = pack_padded_sequence(x, [2, 4, 1, 4], options["batch_first"], False) if packed else x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's kernel has no projections
        for state in (None, hx):
            found, wanted = ours(input, state), theirs(input, state)
            if packed:
                assert isinstance(found[0], PackedSequence)
                found = pad_packed_sequence(found[0])[0], found[1]
                wanted = pad_packed_sequence(wanted[0])[0], wanted[1]
            torch.testing.assert_close(found, wanted)
            gradients = [
                torch.autograd.grad(y.square().sum(), list(m.parameters()))
                for y, m in ((found[0], ours), (wanted[0], theirs))
            ]
            torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_unbatched_input(name: str) -> None:
    for first in (False, True):
        ours, theirs = _pair(name, 3, 5, bidirectional=True, batch_first=first)
        x, h = torch.randn(4, 3), torch.randn(2, 5)
        torch.testing.assert_close(ours(x), theirs(x))
        hx = (h, h) if name == "LSTM" else h
        torch.testing.assert_close(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cell_is_torchs(backend: Backend, name: str, bias: bool) -> None:
    ours, theirs = _pair(name, 3, 5, bias, dtype=torch.float64)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    ours, theirs = ours.to(backend.device), theirs.to(backend.device)
    x, h = torch.randn(2, 4, 3, device=backend.device).double(), torch.randn(4, 5).double().to(backend.device)
    hx = (h, h) if name == "LSTMCell" else h
    torch.testing.assert_close(ours(x[0], hx), theirs(x[0], hx))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    torch.testing.assert_close(ours(x[0, 0]), theirs(x[0, 0]))

    def loss(cell: torch.nn.Module) -> tuple[Tensor, ...]:
        state = None
        for step in x:
            state = cell(step, state)
        out = state[0] + state[1] if isinstance(state, tuple) else state
        return torch.autograd.grad(out.sum(), list(cell.parameters()))

    torch.testing.assert_close(loss(ours), loss(theirs))


def test_relu_cell() -> None:
    ours, theirs = _pair("RNNCell", 3, 5, nonlinearity="relu")
    x = torch.randn(2, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_dropout_between_layers(name: str) -> None:
    ours = getattr(pyops.nn, name)(3, 16, num_layers=2, dropout=0.5)
    x = torch.randn(6, 8, 3)
    torch.manual_seed(3)
    first = ours(x)[0]
    torch.manual_seed(3)
    assert torch.equal(first, ours(x)[0])
    assert not torch.equal(first, ours(x)[0])
    # By hand: the first layer, its output dropped, the second.
    torch.manual_seed(3)
    weights = list(ours.parameters())
    function = {"RNN": F.rnn_tanh, "GRU": F.gru, "LSTM": F.lstm}[name]
    h = x.new_zeros(1, 8, 16)
    hx = (h, h) if name == "LSTM" else h
    middle = function(x, hx, weights[:4], True, 1, 0.0, True, False)[0]
    wanted = function(F.dropout(middle, 0.5), hx, weights[4:], True, 1, 0.0, True, False)[0]
    assert torch.equal(first, wanted)
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_compiled_module(name: str) -> None:
    torch.compiler.reset()
    module = getattr(pyops.nn, name)(3, 5, num_layers=2)
    x = torch.randn(4, 2, 3)
    compiled = torch.compile(module, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=0)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(allow_rnn=True):  # which torch's layers need as well
        torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_autocast(name: str) -> None:
    module = getattr(pyops.nn, name)(3, 5)
    x = torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)[0]
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output.float(), module(x)[0], rtol=0.03, atol=0.03)
    output.float().sum().backward()
    assert all(p.grad.dtype is torch.float32 for p in module.parameters())


def test_training_step_with_clipping_and_truncated_backpropagation() -> None:
    """A stateful model: the state goes on, the gradient stops; equal to torch's step by step."""
    ours, theirs = _pair("LSTM", 4, 8, dtype=torch.float64)
    states: list = [None, None]
    optimizers = [torch.optim.SGD(m.parameters(), 0.5) for m in (ours, theirs)]
    for _ in range(3):
        x = torch.randn(5, 2, 4, dtype=torch.float64)
        losses = []
        for i, module in enumerate((ours, theirs)):
            output, state = module(x, states[i])
            states[i] = tuple(s.detach() for s in state)
            loss = output.square().sum()
            optimizers[i].zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizers[i].step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


def test_last_state_may_be_detached_in_place() -> None:
    """The usual way to cut backpropagation, which refuses views."""
    gru, lstm = pyops.nn.GRU(3, 4), pyops.nn.LSTM(3, 4)
    h = gru(torch.randn(2, 1, 3))[1].detach_()
    states = [s.detach_() for s in lstm(torch.randn(2, 1, 3))[1]]
    assert not any(state.requires_grad for state in (h, *states))


# -------------------------------------------------------------------------------------------------- errors


def test_bad_input_is_refused() -> None:
    gru, lstm = pyops.nn.GRU(3, 4), pyops.nn.LSTM(3, 4)
    x = torch.randn(2, 2, 3)
    with pytest.raises(RuntimeError, match="sequence length must be larger than 0"):
        gru(torch.randn(0, 2, 3))
    with pytest.raises(RuntimeError, match=r"hx: Expected hidden size \(1, 2, 4\).*got \(1, 3, 4\)"):
        gru(x, torch.randn(1, 3, 4))
    with pytest.raises(RuntimeError, match=r"hx\[1\]: Expected hidden\[1\] size \(1, 2, 4\)"):
        lstm(x, (torch.randn(1, 2, 4), torch.randn(1, 2, 5)))
    with pytest.raises(ValueError, match="pair of h and c"):
        lstm(x, torch.randn(1, 2, 4))
    with pytest.raises(RuntimeError, match=r"must be equal to input_size\. Expected 3, got 5"):
        gru(torch.randn(2, 2, 5))
    with pytest.raises(ValueError, match=r"input dtype \(torch\.float64\) does not match weight dtype"):
        gru(x.double())
    with pytest.raises(ValueError, match=r"same dtype, got torch\.float32 and torch\.float64"):
        gru(x, torch.randn(1, 2, 4).double())
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        gru(torch.randn(1, 2, 2, 3))
    with pytest.raises(RuntimeError, match="hx must have 3 dimensions"):
        gru(x, torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="batch size 2, hx 3"):
        pyops.nn.GRUCell(3, 4)(torch.randn(2, 3), torch.randn(3, 4))
    with pytest.raises(ValueError, match="Expected input to be 1D or 2D, got 3D"):
        pyops.nn.LSTMCell(3, 4)(x)
    with pytest.raises(ValueError, match="params must hold 1 sets"):
        F.gru(x, torch.zeros(1, 2, 4), list(gru.parameters())[:3], True, 1, 0.0, True, False)
    with pytest.raises(TypeError, match="input must be a floating-point tensor"):
        F.gru(x.long(), torch.zeros(1, 2, 4), list(gru.parameters()), True, 1, 0.0, True, False)


def test_bad_packed_sequences_are_refused() -> None:
    gru = pyops.nn.GRU(3, 4)
    with pytest.raises(RuntimeError, match="greater than 0"):  # torch's own function
        pack_padded_sequence(torch.randn(3, 2, 3), [3, 0])
    with pytest.raises(RuntimeError, match="sorted in decreasing order"):
        pack_padded_sequence(torch.randn(3, 2, 3), [2, 3])
    with pytest.raises(ValueError, match="not increase"):
        gru(PackedSequence(torch.randn(4, 3), torch.tensor([1, 2, 1])))
    with pytest.raises(ValueError, match="sum up to the 5 rows"):
        gru(PackedSequence(torch.randn(5, 3), torch.tensor([2, 1, 1])))
    with pytest.raises(ValueError, match="positive"):
        gru(PackedSequence(torch.randn(2, 3), torch.tensor([2, 0])))


@pytest.mark.parametrize("op", ["gru", "lstm"])
def test_raw_op_refuses_batch_sizes_that_would_leave_memory(op: str) -> None:
    kind = {"lstm": 2, "gru": 3}[op]
    weights = torch.randn(GATES[op] * 4, 3), torch.randn(GATES[op] * 4, 4)
    h = torch.zeros(2, 4)
    for sizes in ([2, 2], [2, 3], [3], [2, -1, 2], [2**62, 1], [1, 1, 1]):
        with pytest.raises(RuntimeError):
            torch.ops.pyops.recurrent_forward(
                torch.randn(3, 3), *weights, None, None, h, h if op == "lstm" else None,
                torch.tensor(sizes), kind, False, True,
            )  # fmt: skip


def test_empty_batch() -> None:
    for name, packed in itertools.product(("RNN", "GRU", "LSTM"), (False,)):
        ours, theirs = _pair(name, 3, 5)
        x = torch.randn(2, 0, 3, requires_grad=True)
        torch.testing.assert_close(ours(x), theirs(x))
        ours(x)[0].sum().backward()
        assert all((p.grad == 0).all() for p in ours.parameters()), packed
