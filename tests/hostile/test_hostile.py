"""What nobody should pass raises an error, and neither ends the process nor changes an argument.

The generator is in this folder; ``make sanitize`` makes many more calls, watched by sanitizers.
"""

from __future__ import annotations

import random

import pytest
import torch

import pyops.functional as F
from pyops import nn
from tests.hostile import attack, memory, values
from tests.hostile.__main__ import Outcome, make_calls, table
from tests.suite.backends import BACKENDS, CPP, Backend, activate
from tests.suite.processes import run_python

#: By backend, how many calls. The PTX machine runs the same sources as the emulator, and checks each access.
CALLS = {"cpp": 1000, "cuda": 600, "emulated": 150, "triton": 100}


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.name in CALLS], indirect=True, ids=str)
def test_spoiled_calls_neither_crash_nor_change_arguments(backend: Backend) -> None:
    outcome = make_calls(str(backend), CALLS[backend.name])
    assert not outcome.findings, "\n".join(outcome.findings)
    print(table(outcome))
    assert outcome.accepted, "every call was refused: nothing was tested"
    assert outcome.refused, "no call was refused: nothing was tested"


def test_calls_are_the_same_for_a_seed() -> None:
    activate(CPP)
    for index in range(30):
        calls = [attack.make_call(CPP, 0, index, guards=guards) for guards in (True, False)]
        names = [call.name for call in calls]
        assert names[0] == names[1]


_TOUCH = """
import ctypes, torch
from tests.hostile.memory import guarded
t = guarded(torch.ones(5), at_end={at_end})
ctypes.string_at(t.data_ptr() + {offset}, 1)
"""


@pytest.mark.parametrize(
    ("at_end", "offset", "ended"), [(True, 19, 0), (True, 20, -11), (False, 0, 0), (False, -1, -11)]
)
def test_memory_beside_an_argument_cannot_be_read(at_end: bool, offset: int, ended: int) -> None:
    result = run_python("-c", _TOUCH.format(at_end=at_end, offset=offset), check=False)
    assert result.returncode == ended, result.stderr


def test_a_changed_argument_is_seen() -> None:
    kept, changed = torch.ones(5), torch.ones(3)
    before = memory.Snapshot([kept, changed])
    assert not before.changed([])
    changed[0] = 2
    assert before.changed([kept])
    assert not before.changed([changed])


def test_an_ended_process_and_what_is_wrong_are_counted() -> None:
    lines = [
        '{"index": 0, "name": "F.relu", "text": "relu()"}',
        '{"accepted": true, "problem": null}',
        '{"index": 1, "name": "F.relu", "text": "relu(1)"}',
        '{"accepted": false, "problem": "names no function"}',
        '{"index": 2, "name": "F.tanh", "text": "tanh(2)"}',
    ]
    outcome = Outcome()
    assert outcome.add(lines, "SIGSEGV") == 3
    assert (outcome.accepted.total(), outcome.refused.total(), outcome.crashes) == (1, 2, 1)
    assert ["names no function" in f or "SIGSEGV" in f for f in outcome.findings] == [True, True]


def test_every_kind_of_value_is_drawn() -> None:
    rng = random.Random(0)
    drawn = [values.random_tensor(rng, torch.ones(3, 5)) for _ in range(3000)]
    assert {torch.strided, torch.sparse_coo, torch.sparse_csr, torch.jagged} <= {t.layout for t in drawn}
    assert any(t.is_meta for t in drawn)
    assert any(t.is_quantized for t in drawn)
    assert any(t.is_nested for t in drawn)
    assert any(0 in t.stride() for t in drawn if memory.has_memory(t))


# ---------------------------------------------------------------------------------- faults that were found

_X, _ROW = torch.ones(3, 5), torch.ones(2, 5)
_CELL = {"w_ih": torch.ones(5, 3), "w_hh": torch.ones(5, 5)}
_WRONG = {
    "softmax's dim of bytes": (lambda: F.softmax(_X, b"1"), "softmax: dim must be an integer"),
    "log_softmax's dim of text": (lambda: F.log_softmax(_X, ""), "log_softmax: dim must be an integer"),
    "softmax of no tensor with a dtype": (
        lambda: F.softmax("sum", 0, dtype=torch.float32),
        "softmax: input must be a Tensor",
    ),
    "hardtanh's bound of bytes": (lambda: F.hardtanh(_X, b""), "hardtanh: min_val must be a number"),
    "hardtanh's bound of a list": (lambda: F.hardtanh(_X, 0.0, []), "hardtanh: max_val must be a number"),
    "dropout's p of text": (lambda: F.dropout(_X, ""), "dropout: p must be a number"),
    "dropout's p of a list": (lambda: F.dropout(_X, [1.5]), "dropout: p must be a number"),
    "linear's dropout_p of text": (
        lambda: F.linear(_X, _X, dropout_p="a"),
        "linear: dropout_p must be a number",
    ),
    "a cell without a weight": (
        lambda: F.rnn_relu_cell(torch.ones(2, 3), _ROW, **{**_CELL, "w_ih": None}),
        "rnn_relu_cell: weight_ih must be a Tensor",
    ),
    "an LSTM's cell without a state": (
        lambda: F.lstm_cell(torch.ones(2, 3), None, **_CELL),
        "lstm_cell: hx must be a pair",
    ),
    "a recurrent layer of a dictionary": (lambda: nn.LSTM(4, 3)({}), "LSTM: input must be a Tensor"),
    "SyncBatchNorm of a number": (lambda: nn.SyncBatchNorm(4)(1j), "SyncBatchNorm: input must be a Tensor"),
    "layer_norm's shape of a slice": (
        lambda: F.layer_norm(_X, slice(1)),
        "layer_norm: normalized_shape must be an integer or several",
    ),
    "embedding's padding of a list": (
        lambda: F.embedding(torch.zeros(3).long(), _X, padding_idx=[1.5]),
        "embedding: padding_idx must be an integer",
    ),
}


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("call", _WRONG)
def test_wrong_kind_of_argument_is_named(call: str) -> None:
    """Python's own error named neither function nor argument, or was an AttributeError."""
    function, message = _WRONG[call]
    with pytest.raises(TypeError, match=message):
        function()


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("factor", [float("inf"), float("nan"), (1.0, -float("inf"))])
def test_interpolate_refuses_a_factor_that_is_not_finite(factor: object) -> None:
    """It raised OverflowError."""
    with pytest.raises(ValueError, match="interpolate: scale_factor must be finite"):
        F.interpolate(torch.ones(1, 2, 3, 4), scale_factor=factor)


@pytest.mark.usefixtures("cpp")
def test_recurrent_layers_take_batch_sizes_of_any_stride() -> None:
    """The kernel refused them, and torch's layers take them."""
    sizes = torch.tensor([2, 0, 1, 0])[::2]
    arguments = (torch.ones(1, 2, 2), [torch.ones(2, 3), torch.ones(2, 2)], False, 1, 0.0, True, False)
    found = F.rnn_tanh(torch.ones(3, 3), *arguments, batch_sizes=sizes)
    torch.testing.assert_close(found, torch.rnn_tanh(torch.ones(3, 3), sizes.clone(), *arguments))


@pytest.mark.parametrize("backend", [CPP], indirect=True, ids=str)
def test_sizes_whose_product_overflows_are_refused(backend: Backend) -> None:
    """Their product was formed all the same, which UBSan reports; torch refused what came out."""
    grad, target = torch.ones(3, 5), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(
        RuntimeError, match=r"\(9223372036854775807, 5\) has more elements than can be counted"
    ):
        torch.ops.pyops.embedding_backward(grad, target, 2**63 - 1, -1, True)


def test_optimizers_have_no_fused_kernel_for_an_expanded_parameter() -> None:
    """torch's fused kernels, which were chosen for it, wrote 15 numbers into the memory of 5."""
    import pyops

    for optimizer in (pyops.optim.SGD, pyops.optim.AdamW):
        expanded = torch.zeros(5).expand(3, 5).requires_grad_()
        assert not optimizer([expanded], lr=0.5).param_groups[0]["fused"]
        dense = torch.zeros(3, 5).t().requires_grad_()
        assert optimizer([dense], lr=0.5).param_groups[0]["fused"]


@pytest.mark.parametrize("params", [None, True, torch.ones(3), [torch.ones(3), {"a": 1}]])
def test_optimizers_refuse_what_holds_no_parameters(params: object) -> None:
    """A group without "params" was a KeyError."""
    import pyops

    for optimizer in (pyops.optim.SGD, pyops.optim.AdamW):
        with pytest.raises(TypeError):
            optimizer(params)
