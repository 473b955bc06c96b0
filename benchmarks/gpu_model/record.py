"""The launches of a case: kernels as nvcc or Triton made them, run on the CPU by the tests' PTX machine."""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyops import backends
from pyops.ops import gemm

from ..measure.case import FORWARD_BACKWARD, Case, Inputs
from . import model
from .gpus import GPUS

#: Thread instructions of a case up to which all its blocks run.
FEW = 3e8
#: Inputs of more bytes are all zeros, in memory that exists only where it is touched.
LARGE = 256 << 20
_ZEROED_BY_SYSTEM = 64 << 20  # bytes from which on an allocation is fresh memory of the system
_CPU = torch.device("cpu")
_DRIVERS = {"ptx": "nvcc", "triton": "triton_driver"}


class Unavailable(RuntimeError):
    """The machine cannot run here; the message says why."""


@dataclass(frozen=True)
class Recorded:
    """One call of a case: what its launches do, and how far the counts from half as many blocks are off."""

    case: Case
    mode: str
    elements: int  # of the largest tensor
    zeros: bool
    works: list[model.Work]
    deviation: float
    problem: str = ""  # why no sample of the blocks would do


def machine(backend: str) -> ModuleType:
    """The PTX machine, with ``backend`` (``ptx`` or ``triton``) set up to run on it.

    Raises:
        Unavailable: the sources or the CUDA library are not there, or Triton.
    """
    # Read when the library of the kernels' host code is loaded.
    os.environ["PYOPS_SIZES_OF_GPU"] = "1"
    try:
        from tests.ptx_machine import machine as found

        driver = importlib.import_module(f"tests.ptx_machine.{_DRIVERS[backend]}")
    except ModuleNotFoundError as error:
        raise Unavailable(f"needs a checkout of the sources, from whose root it runs: {error}") from error
    reason = found.missing_reason() or (driver.missing_reason() if backend == "ptx" else None)
    if reason is not None:
        raise Unavailable(reason)
    (driver.load if backend == "ptx" else driver.activate)()
    if backend == "ptx":
        _leave_products_to_torch()
    return found


@functools.cache
def _leave_products_to_torch() -> None:
    """On a GPU they are the vendor's, through torch."""
    torch.library.impl("pyops_ptx::gemm_", "CPU")(gemm.library_gemm_)


def record(case: Case, mode: str, backend: str, sample: int) -> Recorded:
    """Run one call of ``case``; where that would take long, of each grid at most ``sample`` blocks.

    Raises:
        RuntimeError: a fault of the machine.
    """
    ptx = machine(backend)
    zeros = _bytes(case.inputs(torch.device("meta"))) > LARGE
    inputs = _zeros(case.inputs(torch.device("meta"))) if zeros else case.build(_CPU)

    def launched(blocks: int) -> tuple[list[model.Work], int]:
        call = _call(case, mode, inputs, zeros)
        with (
            backends.use_backend(backend),
            ptx.record_launches(sample=blocks, multiprocessors=GPUS[0].multiprocessors) as launches,
        ):
            results = call()
        works = [model.work(_name(launch), launch, launch.counters) for launch in launches]
        return works, max(t.numel() for t in (*_tensors(inputs), *results))

    apart, problem = 0.0, ""
    try:
        works, elements = launched(sample)
        if any(one.blocks_run < one.blocks for one in works):
            if sum(one.thread_instructions for one in works) <= FEW:
                works, elements = launched(0)
            else:
                apart = deviation(works, launched(sample // 2)[0])
    except RuntimeError as error:  # what a sample leaves in memory may lead a later launch astray
        problem = str(error)
        works, elements = launched(0)
    return Recorded(case, mode, elements, zeros, model.add_up(works), apart, problem)


def _call(case: Case, mode: str, inputs: Inputs, zeros: bool) -> Callable[[], tuple[Tensor, ...]]:
    function = case.pyops_call()
    if mode != FORWARD_BACKWARD:
        return lambda: (function(**inputs),)
    given = {**inputs, **{name: inputs[name].detach().requires_grad_() for name in case.differentiable}}

    def forward_backward() -> tuple[Tensor, ...]:
        output = function(**given)
        upstream = None if output.dim() == 0 else _zeros_like(output) if zeros else torch.randn_like(output)
        return (output, *torch.autograd.grad(output, [given[name] for name in case.differentiable], upstream))

    return forward_backward


def deviation(works: list[model.Work], fewer: list[model.Work]) -> float:
    """How far the launches' instructions or sectors are apart, as a share of the case's; infinity where the
    launches are others.
    """
    if len(works) != len(fewer):
        return math.inf

    def of(count: Callable[[model.Work], float]) -> float:
        apart = sum(abs(count(a) - count(b)) for a, b in zip(works, fewer, strict=True))
        return apart / max(1.0, sum(map(count, works)))

    return max(
        of(lambda work: work.warp_instructions),
        of(lambda work: work.counts["load_sectors"] + work.counts["store_sectors"]),
    )


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [value for value in inputs.values() if isinstance(value, Tensor)]


def _bytes(inputs: Inputs) -> int:
    return sum(t.numel() * t.itemsize for t in _tensors(inputs))


def _zeros(inputs: Inputs) -> Inputs:
    return {name: _zeros_like(v) if isinstance(v, Tensor) else v for name, v in inputs.items()}


def _zeros_like(tensor: Tensor) -> Tensor:
    large = tensor.numel() * tensor.itemsize >= _ZEROED_BY_SYSTEM
    return (torch.empty_like if large else torch.zeros_like)(tensor.detach(), device=_CPU)


def _name(launch: Any) -> str:
    """The kernel's name in the source with its template arguments, without namespaces and parameters."""
    from tests.suite.cuda_library import demangle

    name = demangle([launch.entry])[0].removeprefix("void ")
    for dropped in ("(anonymous namespace)::", "pyops::cuda::", "pyops::", "_kernel"):
        name = name.replace(dropped, "")
    return "".join(_outside_parentheses(name))


def _outside_parentheses(name: str) -> Iterator[str]:
    depth = 0
    for letter in name:
        depth += letter == "("
        if depth == 0:
            yield letter
        depth -= letter == ")"
