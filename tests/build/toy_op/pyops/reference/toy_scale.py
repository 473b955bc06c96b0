"""A tensor times a number, as torch's formula."""

from __future__ import annotations

from torch import Tensor


def toy_scale(input: Tensor, factor: float) -> Tensor:
    """``input`` times ``factor``."""
    return input * factor
