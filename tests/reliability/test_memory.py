"""What training leaves behind, what a call keeps for its gradient, and what happens when memory ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pyops
from tests.suite.processes import run_python

from .workloads import CLASSES, HIDDEN, IMAGES, OURS, ROWS, TORCHS, WORKLOADS, Workload


@pytest.mark.parametrize("steps", [200, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_steps_of_changing_sizes_leave_nothing_behind(steps: int) -> None:
    """At most 8 MiB, in the second half of the steps, of what the C library has not given back."""
    lines = run_python("-m", "tests.reliability.leak", str(steps)).stdout.splitlines()
    grown, tensors = map(int, lines[-1].split())
    assert tensors == 0
    assert grown < 8 << 20


@pytest.mark.nightly
def test_calls_that_find_no_memory_raise_and_later_ones_work() -> None:
    said = run_python("-m", "tests.reliability.out_of_memory", environment={"PYOPS_BACKEND": None}).stdout
    print(said)  # how many failed


# ------------------------------------------------------------------------------------ saved for the gradient


def held_by_nodes(outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tensors that our autograd functions hold beside those that they save."""
    seen: set[Any] = set()
    nodes = [o.grad_fn for o in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        values = list(getattr(node, "__dict__", {}).values())
        while values:
            value = values.pop()
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (tuple, list)):
                values += value
            elif type(value).__module__.startswith("pyops"):
                values += getattr(value, "__dict__", {}).values()


def kept(workload: Workload, library: Any) -> tuple[int, int]:
    """Bytes that a graph keeps: of its inputs and outputs, and beyond them."""
    tensors, saved = workload.tensors(), []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = workload.outputs(library, tensors)
    known = {t.untyped_storage().data_ptr() for t in (*tensors.values(), *outputs)}
    storages = {s.data_ptr(): s for s in (t.untyped_storage() for t in (*saved, *held_by_nodes(outputs)))}
    bytes_of = {address: storage.nbytes() for address, storage in storages.items()}
    mine = sum(size for address, size in bytes_of.items() if address in known)
    return mine, sum(bytes_of.values()) - mine


_ELEMENTS, _LOGITS = 4 * torch.Size(IMAGES).numel(), 4 * torch.Size(ROWS).numel()
_STEP = 4 * 64 * HIDDEN  # one gate of one step of a layer; of a cell, four times that
_SMALL = 2048  # bytes of biases
#: Losses that keep input and target, as torch's do.
_LIKE_TORCHS = ("mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
#: Bytes that ours keep beyond inputs and outputs; 0 where not named.
BEYOND: dict[str, int] = {
    # The gradient itself, which forward writes, and the divisor.
    **dict.fromkeys([*_LIKE_TORCHS, "l1_loss"], _LOGITS + 4),
    "cross_entropy": _LOGITS + 8 * ROWS[0] + 4,  # and two numbers of each row
    "linear_cross_entropy": 4 * HIDDEN * (CLASSES + 320) + 4,  # both gradients
    "nll_loss": 4,
    "gru": 12 * 4 * _STEP,
    "lstm": 12 * 5 * _STEP,
    "gru_cell": 4 * 4 * _STEP,
    "lstm_cell": 4 * 5 * _STEP,
    "dropout": 16,  # a seed
    "max_pool2d": 16 * 16 * 16 * 20,  # one byte for each output: where in its window the largest was
    "conv2d_max_pool2d": 16 * 24 * 15 * 19,
    "batch_norm": 3 * 4 * IMAGES[1],
    "layer_norm": 2 * 4 * ROWS[0],
    "group_norm": 2 * 4 * IMAGES[0] * 4,
    "instance_norm": 2 * 4 * IMAGES[0] * IMAGES[1],
}
#: Those that keep more than torch's, by bytes: gradients that forward has written, which torch's backward
#: allocates; a cell's output; and biases, for the formula of the second derivative.
MORE_THAN_TORCH: dict[str, int] = {
    **dict.fromkeys(_LIKE_TORCHS, _LOGITS + 4),
    "l1_loss": 2 * _LOGITS + 4,
    "cross_entropy": _LOGITS + 8 * ROWS[0],
    "lstm_cell": 4 * _STEP + _SMALL,
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_bytes_kept_for_the_gradient(name: str) -> None:
    with pyops.use_backend("cpp"):
        mine, beyond = kept(WORKLOADS[name], OURS)
    torchs = sum(kept(WORKLOADS[name], TORCHS))
    assert beyond == BEYOND.get(name, 0)
    assert mine + beyond <= torchs + MORE_THAN_TORCH.get(name, _SMALL)
