"""The sizes of a sweep: how long a call takes as its tensors grow from a thousand elements to millions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...measure.case import FORWARD_BACKWARD, Case

#: Elements of the input.
ELEMENTS = tuple(1024 * 4**power for power in range(7))


def sweep(case: Callable[[int], Case]) -> list[Case]:
    """A case for each number of :data:`ELEMENTS`, forward and backward, torch eager as the baseline.

    ``case`` takes the number in units of 1024.
    """
    return [
        replace(case(elements // 1024), elements=elements, modes=(FORWARD_BACKWARD,), channels_last=False)
        for elements in ELEMENTS
    ]
