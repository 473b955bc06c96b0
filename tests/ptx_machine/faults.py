"""Finding fault with kernels: calls that exercise them, mistakes to plant in their PTX, and the tools."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import pyops

from . import machine

#: Orders of warps and blocks that are tried besides the plain one.
SEEDS = (1, 2, 3)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    return torch.randn(shape, generator=generator).to(dtype)


@dataclass(frozen=True)
class Call:
    """A call of an op and torch's, with the error that is allowed, relative to the largest number."""

    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    inputs: list[Tensor]
    error: float = 1e-4
    backend: str = "ptx"

    def run(self) -> list[Tensor]:
        with pyops.use_backend(self.backend):
            return _forward_and_backward(self.ours, self.inputs)

    def expected(self) -> list[Tensor]:
        return _forward_and_backward(self.torchs, [x.double() for x in self.inputs])


def _forward_and_backward(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, inputs, weights)]


# Half of the first warp comes to a barrier alone.
HALF_A_WARP = (
    r"{ .reg .pred %half; .reg .b32 %x; mov.u32 %x, %tid.x; setp.lt.u32 %half, %x, 16; @%half \g<0> }"
)
# What the machine says.
GARBAGE = "has never been given a value"
RACE = "with no barrier in between"
APART = "lanes of a warp wait for each other"
TOO_SOON = f"{RACE}|{GARBAGE}"


@dataclass(frozen=True)
class Planted:
    """``old`` becomes ``new`` in kernels of ``source`` whose names match ``kernel``; ``call`` runs them.

    Args:
        kind: of mistake.
        source: of the kernels.
        kernel: a pattern, as ``old`` is.
        tool: which of the tools notices; None where none does.
        message: a pattern for the machine's fault, or why no tool notices.
        which: the occurrence of ``old`` in a kernel that is replaced; all where None.
    """

    kind: str
    source: str
    kernel: str
    old: str
    new: str
    call: str
    tool: str | None
    message: str = ""
    which: int | None = 0

    def edit(self, text: str) -> str:
        """The PTX with the mistake."""

        def edited(entry: re.Match[str]) -> str:
            if not re.search(self.kernel, entry[1]):
                return entry[0]
            number = iter(range(len(entry[0])))

            def replaced(found: re.Match[str]) -> str:
                return found.expand(self.new) if self.which in (None, next(number)) else found[0]

            return re.sub(self.old, replaced, entry[0])

        return re.sub(r"\.entry (\S+)\(.*?\n\}\n", edited, text, flags=re.DOTALL)


def _differ(found: list[Tensor], expected: list[Tensor], error: float) -> bool:
    for ours, theirs in zip(found, expected, strict=True):
        bound = error * theirs.abs().max().clamp(min=1e-30)
        if not bool(((ours.double() - theirs).abs() <= bound).all()):  # NaN is never within
            return True
    return False


#: mallopt's number of the byte with which glibc fills memory that is freed, and, inverted, that is new.
_M_PERTURB = -6
#: Inverted 0x7f: new numbers are 3e38 in float32 and bfloat16, 1e306 in float64, NaN in float16.
_HUGE = 0xFF ^ 0x7F


@contextlib.contextmanager
def _new_memory_filled() -> Iterator[None]:
    """What a kernel reads too early, or does not write, is else what the run before left: it is right."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_PERTURB, _HUGE)
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)


def _runs(call: Call) -> Iterator[list[Tensor]]:
    """Results in order, then in the orders of the seeds."""
    for seed in (0, *SEEDS):
        machine.set_seed(seed)
        try:
            yield call.run()
        finally:
            machine.set_seed(0)


def detect(call: Call) -> tuple[str | None, str]:
    """The tool that finds fault with the kernels as they are, and what it says; None when they are sound."""
    try:
        with _new_memory_filled():
            first, *others = _runs(call)
    except RuntimeError as fault:
        return "machine", str(fault)
    if _differ(first, call.expected(), call.error):
        return "result", "the result is wrong"
    for seed, other in zip(SEEDS, others, strict=True):
        if not all(torch.equal(a, b) for a, b in zip(first, other, strict=True)):
            return "seeds", f"other bits with seed {seed}"
    return None, ""
