"""Whether products of float32 on CUDA may round their factors to TF32, as torch's switches have it.

This is the one place that asks torch. Triton's launchers call these functions, those in C++ the ops of the
same names. An argument of the ops would be a constant of torch.compile's graphs; so the switches work as on
torch's own ops.

A switch that is "none" follows ``torch.backends.cudnn.fp32_precision`` or ``torch.backends.fp32_precision``;
torch's getters know. ``allow_tf32`` sets the same switches by an older name, but reading it raises once the
newer names have been used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_Question = TypeVar("_Question", bound=Callable[..., bool])
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _answers(schema: str) -> Callable[[_Question], _Question]:
    """The decorated function answers the op ``pyops::<its name>``, on whatever device."""

    def register(function: _Question) -> _Question:
        name = f"pyops::{function.__name__}"
        torch.library.define(name, schema, tags=_TAGS)
        torch.library.impl(name, "CompositeExplicitAutograd")(function)
        return function

    return register


@_answers("() -> bool")
def matmul_allows_tf32() -> bool:
    """Matrix products: ``torch.backends.cuda.matmul.fp32_precision``."""
    precision: str = torch.backends.cuda.matmul.fp32_precision
    return precision == "tf32"


@_answers("() -> bool")
def conv2d_allows_tf32() -> bool:
    """Convolutions: ``torch.backends.cudnn.conv.fp32_precision``."""
    precision: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"


@_answers("(int steps) -> bool")
def recurrent_allows_tf32(steps: int) -> bool:
    """Recurrent layers: ``torch.backends.cudnn.rnn.fp32_precision``.

    Torch's cells are matrix products instead, and follow their switch. A single step may be a cell's, so both
    switches must allow it.
    """
    precision: str = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32" and (steps > 1 or matmul_allows_tf32())
