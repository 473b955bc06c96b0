"""What is measured: the :class:`Case` type.

Every case states the bytes and floating-point operations that the mathematics needs (:class:`Traffic`), so
that a report can say how far from the machine's measured ceiling a time is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import pyops.functional

from .contender import Contender, Inputs

FORWARD = "forward"
FORWARD_BACKWARD = "forward+backward"
TRAINING_STEP = "training step"
SEED = 20


@dataclass(frozen=True)
class Traffic:
    """The least work a case can do: bytes read and written (each operand once per pass), and FLOPs."""

    read: int
    written: int
    flops: int = 0

    @property
    def total(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class RandomMask:
    """What makes a random result checkable: the call without its mask, and the probability to drop.

    Where the result is not 0 it must be that of ``without``, divided by 1 - p.
    """

    without: Callable[..., torch.Tensor]
    p: float


@dataclass(frozen=True)
class Case:
    """One measured call.

    ``op`` names the function in ``pyops.functional`` and in ``torch.nn.functional`` (a subclass may
    measure something else, as :mod:`pyops.benchmarks.cases.training_step` does); ``torch_call`` replaces the
    latter where torch spells it differently. ``inputs(device)`` builds the keyword arguments; it must
    also work on the ``meta`` device. ``options`` go to both sides,
    ``pyops_options`` to pyops alone.
    """

    op: str
    label: str
    inputs: Callable[[torch.device], Inputs]
    traffic: Callable[[str], Traffic]
    dtype: torch.dtype = torch.float32
    devices: tuple[str, ...] = ("cpu", "cuda")
    modes: tuple[str, ...] = (FORWARD_BACKWARD,)
    differentiable: tuple[str, ...] = ("input",)
    options: Mapping[str, Any] = field(default_factory=dict)
    pyops_options: Mapping[str, Any] = field(default_factory=dict)
    torch_call: Callable[..., torch.Tensor] | None = None
    #: Further torch baselines by name: what a user could also write.
    baselines: Mapping[str, Callable[..., torch.Tensor]] = field(default_factory=dict)
    #: The input that a call may overwrite: rewritten before each call, outside of the timed region.
    refill: str | None = None
    #: For calls with a random mask, whose results never repeat.
    mask: RandomMask | None = None
    #: How far each output is from taking another branch (the sign under a ReLU, the largest of a window),
    #: called as torch is. Close to 0 one rounding decides where the gradient goes: none is sent into those.
    margin: Callable[..., torch.Tensor] | None = None
    #: Error that is always allowed; None: that of the dtype (:func:`pyops.benchmarks.measure.checks.floor`).
    least_error: float | None = None
    #: Products of float32 may be rounded to TF32 on a GPU, as torch's switch for cuDNN says.
    tf32: bool = False
    #: Also measure torch eager on channels_last input (4-D inputs only).
    channels_last: bool = False
    #: Measured in microseconds per call by :mod:`pyops.benchmarks.measure.overhead`, not in the main table.
    overhead: bool = False
    #: Of the input, where the case is one of a sweep over sizes: measured as users call it, not in the main
    #: table.
    elements: int | None = None
    #: Part of ``--quick`` runs.
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.op} {self.label} {dtype_name(self.dtype)}"

    def pyops_call(self) -> Callable[..., torch.Tensor]:
        """The pyops function with this case's options bound."""
        return _bind(getattr(pyops.functional, self.op), {**self.options, **self.pyops_options})

    def eager_call(self) -> Callable[..., torch.Tensor]:
        """The torch function with this case's options bound."""
        call = self.torch_call or getattr(torch.nn.functional, self.op)
        return _bind(call, self.options)

    def margin_call(self) -> Callable[..., torch.Tensor] | None:
        """``margin`` with this case's options bound."""
        return _bind(self.margin, self.options) if self.margin else None

    def algorithm(self, inputs: Inputs) -> str:
        """Which of its algorithms pyops serves this case by; "" where the op has one only."""
        return ""

    def uses_tf32(self, device: torch.device) -> bool:
        """Whether an implementation on ``device`` may round to TF32; torch's own may or may not."""
        switched_on = self.tf32 and self.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        return switched_on and device.type == "cuda"

    def labels(self, mode: str) -> list[str]:
        """Names of what a contender returns to be checked."""
        if mode != FORWARD_BACKWARD:
            return ["output"]
        return ["output", *(f"gradient of {name}" for name in self.differentiable)]

    def contenders(
        self, mode: str, device: torch.device, *, compiled: bool, extra: Sequence[str] = ()
    ) -> list[Contender] | None:
        """Contenders of a case that measures more than a function and its gradients; None: the usual ones.

        ``extra`` names baselines that are no torch: such a case has those that it knows.
        """
        return None

    def reference(self, mode: str, device: torch.device) -> tuple[torch.Tensor, ...]:
        """What :meth:`contenders` are compared with, in float64."""
        raise NotImplementedError

    def build(self, device: torch.device | str) -> Inputs:
        """Fresh inputs on ``device``, the same numbers every time; the global generators are kept."""
        device = torch.device(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(SEED)
            return self.inputs(device)


def _bind(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    if not options:
        return function

    # A plain closure: functools.partial costs torch.compile a graph break on some versions.
    def bound(**inputs: Any) -> Any:
        return function(**inputs, **options)

    return bound


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
