"""cross_entropy(process_group=...): slices of the classes together give the loss and gradients of all.

The processes of these tests are threads of one, which take turns; tests/reliability has real ones.
"""

from __future__ import annotations

import contextvars
import gc
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import pyops
from pyops.functional import cross_entropy
from pyops.ops import sharded_cross_entropy
from tests.suite.backends import Backend
from tests.suite.ops.cross_entropy import cross_entropy as formula

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


class Group:
    """Threads in place of processes: one runs at a time, and they exchange tensors where all have come."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.turn, self.meeting = threading.Lock(), threading.Barrier(size)
        self.slots: list[Any] = [None] * size
        self.rank = threading.local()
        self.meetings = 0

    def gathered(self, tensor: Tensor) -> Tensor:
        self.slots[self.rank.value] = tensor
        self.meetings += self.rank.value == 0
        self.turn.release()
        self.meeting.wait()
        found = torch.stack(self.slots)
        self.meeting.wait()
        self.turn.acquire()
        return found

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """What ``function(rank)`` returns or raises, for each rank."""
        found: list[Any] = [None] * self.size

        def work(rank: int) -> None:
            self.rank.value = rank
            with self.turn:
                try:
                    found[rank] = function(rank)
                except Exception as error:
                    found[rank] = error

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work, rank))
            for rank in range(self.size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


@pytest.fixture(autouse=True)
def threads_as_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_cross_entropy, "gathered", lambda tensor, group: group.gathered(tensor))
    monkeypatch.setattr(sharded_cross_entropy, "rank_in", lambda function, group: group.rank.value)


def in_slices(
    sizes: Sequence[int], logits: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any
) -> tuple[list[Any], list[Tensor]]:
    """Each process's result or error, and its leaf."""
    dim = min(logits.dim() - 1, 1)
    leaves = [part.detach().clone().requires_grad_() for part in logits.split(list(sizes), dim)]
    layout = torch.channels_last if logits.dim() == 4 else torch.preserve_format
    weights = [None] * len(sizes) if weight is None else weight.split(list(sizes))
    group = Group(len(sizes))

    def call(rank: int) -> Any:
        inputs = (leaves[rank] * 1).contiguous(memory_format=layout)
        return cross_entropy(inputs, target, weights[rank], process_group=group, **options)

    return group.run(call), leaves


def flat(result: Any) -> Tensor:
    """All numbers of a result, in float64."""
    parts = result if isinstance(result, tuple) else (result,)
    return torch.cat([part.double().flatten() for part in parts])


def compare(
    sizes: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype, device: str, **options: Any
) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    dim = min(len(shape) - 1, 1)
    row_shape = shape[:dim] + shape[dim + 1 :]
    logits = (3 * torch.randn(shape, generator=g)).to(dtype)
    target = torch.randint(options.pop("targets", shape[dim]), row_shape, generator=g)
    ignored = options.get("ignore_index", -100)
    if target.numel() > 1:
        target.view(-1)[::3] = ignored
    tensors: dict[str, Tensor] = {}
    if options.pop("weight", False):
        tensors["weight"] = torch.rand(shape[dim], generator=g).to(dtype)
    if options.pop("sample_weight", False):
        tensors["sample_weight"] = torch.rand(row_shape, generator=g).to(dtype)
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    results, leaves = in_slices(sizes, logits.to(device), target.to(device), **on_device, **options)
    for result in results:
        if isinstance(result, Exception):
            raise result
        assert torch.equal(flat(result), flat(results[0])), "the processes' results have other bits"
    leaf = logits.double().requires_grad_()
    wanted = flat(formula(leaf, target, **{k: t.double() for k, t in tensors.items()}, **options))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(flat(results[0]).cpu(), wanted, rtol=tolerance, atol=tolerance)
    factors = torch.linspace(0.5, 2, len(wanted), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(wanted @ factors, leaf)
    parts = [
        torch.autograd.grad(flat(result) @ factors.to(device), part)[0]
        for result, part in zip(results, leaves, strict=True)
    ]
    found = torch.cat(parts, dim).double().cpu()
    torch.testing.assert_close(found, gradient, rtol=tolerance, atol=tolerance)


PLAIN: dict[str, Any] = {}
ALL_OPTIONS = {
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "weight": True,
    "sample_weight": True,
    "return_lse": True,
    "reduction": "sum",
}


@pytest.mark.parametrize("options", [PLAIN, ALL_OPTIONS], ids=["plain", "all_options"])
def test_slices_equal_one_process(backend: Backend, options: dict[str, Any]) -> None:
    compare((2, 5), (5, 7), torch.float32, backend.device, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none", "ignore_index": 3},
        {"label_smoothing": 0.2, "weight": True},
        {"label_smoothing": 1.0},
        {"weight": True, "reduction": "none", "return_lse": True},
        {"z_loss": 0.1, "inplace_backward": True, "sample_weight": True},
        {"targets": 4},  # all in the first slice
        ALL_OPTIONS,
    ],
    ids=lambda o: "+".join(o),
)
def test_options_in_float64(cpp: None, options: dict[str, Any]) -> None:
    for sizes, shape in itertools.product(
        [(19, 4), (4, 1, 18), (0, 23), (5, 0, 18), (23,)], [(9, 23), (2, 23, 3), (2, 23, 2, 3)]
    ):
        compare(sizes, shape, torch.float64, "cpu", **options)
    compare((19, 4), (2, 23, 2, 3), torch.bfloat16, "cpu", **options)
    if "ignore_index" not in options:
        compare((2, 5), (7,), torch.float64, "cpu", **{**options, "ignore_index": -1, "targets": 1})


def test_no_rows(cpp: None) -> None:
    results, leaves = in_slices((2, 3), torch.empty(0, 5), torch.empty(0, dtype=torch.int64))
    assert [math.isnan(result.item()) for result in results] == [True, True]
    results[0].backward()
    assert leaves[0].grad is not None
    assert leaves[0].grad.shape == (0, 2)


def test_impossible_classes_and_bad_numbers(backend: Backend) -> None:
    """Rows: a slice that is -inf as a whole, one possible class, NaN, +inf, none possible, a usual one."""
    logits = torch.zeros(6, 5, dtype=torch.float64) + torch.arange(5)
    logits[0, :2] = -math.inf
    logits[1, 1:] = -math.inf
    logits[2, 3], logits[3, 4] = math.nan, math.inf
    logits[4] = -math.inf
    target = torch.tensor([3, 0, 1, 1, 2, 4], device=backend.device)
    results, leaves = in_slices((2, 3), logits.to(backend.device), target, reduction="none", return_lse=True)
    leaf = logits.clone().requires_grad_()
    wanted = formula(leaf, target.cpu(), reduction="none", return_lse=True)
    rows = torch.tensor([0, 1, 5])
    loss, lse = (numbers.detach().cpu() for numbers in results[1])
    torch.testing.assert_close(loss, wanted[0].detach(), equal_nan=True)
    torch.testing.assert_close(lse[rows], wanted[1].detach()[rows])
    assert not torch.isfinite(lse[2:5]).any()
    (gradient,) = torch.autograd.grad(wanted[0][rows].sum(), leaf)
    parts = [
        torch.autograd.grad(result[0][rows].sum(), part)[0]
        for result, part in zip(results, leaves, strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts, 1).cpu()[rows], gradient[rows])


def test_a_large_common_offset_changes_nothing(backend: Backend) -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(5)).mul(8).round().to(backend.device)
    target = torch.tensor([0, 5, 2, 3], device=backend.device)
    here, _ = in_slices((2, 4), logits, target)
    there, _ = in_slices((2, 4), logits + 2.0**20, target)
    assert torch.equal(here[0], there[0])


def test_ignored_rows_hold_anything(backend: Backend) -> None:
    logits = torch.randn(3, 5, device=backend.device)
    logits[1] = math.nan
    target = torch.tensor([0, -100, 4], device=backend.device)
    results, leaves = in_slices((2, 3), logits, target, label_smoothing=0.1, z_loss=0.1)
    for result, leaf in zip(results, leaves, strict=True):
        result.backward()
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert not leaf.grad[1].any()


# -------------------------------------------------------------------------------------------------- errors


def refused(group: Group, call: Callable[[int], Any], error: type[Exception], message: str) -> None:
    """Every process raises the same, and none is left waiting."""
    found = group.run(call)
    assert [type(f) for f in found] == [type(found[0])] * group.size
    assert {str(f) for f in found} == {str(found[0])}
    with pytest.raises(error, match=message):
        raise found[0]


@pytest.mark.parametrize("bad", [7, -1, 2**40])
def test_a_bad_target_is_the_same_error_in_every_process(backend: Backend, bad: int) -> None:
    if backend.device != "cpu":
        pytest.skip("there it is NaN")
    group, target = Group(3), torch.tensor([0, bad, 6])

    def call(rank: int) -> Any:
        return cross_entropy(torch.randn(3, rank + 1 + (rank == 2)), target, process_group=group)

    refused(group, call, IndexError, rf"target must be in \[0, 7\) or equal ignore_index \(-100\), got {bad}")
    assert group.meetings == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": torch.tensor([1, 0])}, "target must be the same"),
        ({"target": torch.tensor([0])}, "the number of rows"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"z_loss": 0.5}, "z_loss"),
        ({"ignore_index": 3}, "ignore_index"),
        ({"reduction": "sum"}, "reduction"),
        ({"weight": torch.ones(2)}, "whether there is a weight"),
        ({"sample_weight": torch.tensor([1.0, 2.0])}, "sample_weight"),
        ({"input": torch.zeros(2, 2, dtype=torch.float64)}, "the dtype of input"),
    ],
    ids=lambda p: next(iter(p)) if isinstance(p, dict) else "",
)
def test_what_differs_between_processes_is_an_error_in_each(given: dict[str, Any], message: str) -> None:
    group = Group(2)

    def call(rank: int) -> Any:
        usual = {"input": torch.zeros(2, 2), "target": torch.tensor([0, 1])}
        options = {**usual, **(given if rank == 1 else {})}
        if len(options["target"]) == 1:
            options["input"] = options["input"][:1]
        return cross_entropy(**options, process_group=group)

    refused(group, call, ValueError, message)


def test_an_argument_refused_in_one_process_is_an_error_in_the_others() -> None:
    group = Group(3)

    def call(rank: int) -> Any:
        return cross_entropy(torch.zeros(2, 3 if rank else 2), torch.zeros(2 + (rank == 1)).long(),
                             process_group=group)  # fmt: skip

    found = group.run(call)
    assert all(isinstance(error, ValueError) for error in found)
    assert "rank [1]" in str(found[0]) == str(found[2])
    assert "target must have shape" in str(found[1])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"target": torch.rand(2, 3)}, TypeError, "class indices where process_group is given"),
        ({"weight": torch.ones(3, requires_grad=True)}, ValueError, "no gradient of weight"),
        ({"sample_weight": torch.ones(2, requires_grad=True)}, ValueError, "no gradient of sample_weight"),
        ({"inplace_backward": True, "input": torch.zeros(2, 3, requires_grad=True)}, RuntimeError, "a leaf"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be between"),
        ({"reduction": "median"}, ValueError, "reduction"),
        ({"weight": torch.ones(6)}, ValueError, "weight must have shape"),
        ({"input": torch.zeros(2, 3).to(torch.float8_e5m2)}, TypeError, "input must be one of"),
    ],
)
def test_what_does_not_work_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    group = Group(2)
    options = {"input": torch.zeros(2, 3), "target": torch.tensor([0, 5]), **given}
    refused(group, lambda rank: cross_entropy(**options, process_group=group), error, message)


def test_a_second_derivative_is_refused(cpp: None) -> None:
    results, leaves = in_slices((2, 3), torch.randn(4, 5), torch.tensor([0, 1, 2, 3]))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(results[0], leaves[0], create_graph=True)


def test_something_else_than_a_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for group in ("world", 1, torch.distributed.GroupMember.NON_GROUP_MEMBER):
        with pytest.raises(TypeError, match="process_group must be a torch"):
            cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), process_group=group)


# ------------------------------------------------------------------------------------------------- autograd


def test_logits_changed_in_place_are_noticed(cpp: None) -> None:
    group, leaves = Group(2), [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
    inputs = [leaf * 1 for leaf in leaves]
    losses = group.run(lambda rank: cross_entropy(inputs[rank], torch.tensor([0, 5]), process_group=group))
    inputs[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[0].backward()


def test_backward_lets_go_of_the_logits(cpp: None) -> None:
    group, alive = Group(2), []

    def call(rank: int) -> Tensor:
        logits = torch.randn(2, 3, requires_grad=True) * 1
        alive.append(weakref.ref(logits))
        return cross_entropy(logits, torch.tensor([0, 5]), process_group=group)

    losses = group.run(call)
    for loss in losses:
        loss.backward()
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_one_exchange_forward_beside_the_agreement_and_none_backward(cpp: None) -> None:
    group, leaf = Group(1), torch.randn(4, 3, requires_grad=True)
    group.run(lambda rank: cross_entropy(leaf, torch.tensor([0, 1, 2, 1]), process_group=group).backward())
    assert group.meetings == 2


def test_module(cpp: None) -> None:
    weight, target = torch.rand(5), torch.tensor([4, 0, 2])
    logits = torch.randn(3, 5)
    group = Group(2)
    layers = [
        pyops.nn.CrossEntropyLoss(part, label_smoothing=0.1, process_group=group)
        for part in weight.split([2, 3])
    ]
    parts = logits.split([2, 3], 1)
    found = group.run(lambda rank: layers[rank](parts[rank], target))
    wanted = torch.nn.functional.cross_entropy(logits, target, weight, label_smoothing=0.1)
    for loss in found:
        torch.testing.assert_close(loss, wanted)
