"""One implementation that competes in a case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Inputs = dict[str, Any]


def nothing() -> None:
    return None


@dataclass
class Contender:
    """``call`` does the measured work and returns ``(output, *gradients)``.

    ``before_block`` (choice of backend) and ``before_call`` (rewriting an input) are never timed.
    """

    name: str
    call: Callable[[], tuple[torch.Tensor, ...]]
    inputs: Inputs
    subject: bool = False
    before_block: Callable[[], None] = nothing
    before_call: Callable[[], None] | None = None
    #: Called in place of ``call`` for results to compare, where a call alone shows too little.
    checked: Callable[[], tuple[torch.Tensor, ...]] | None = None

    def run(self) -> tuple[torch.Tensor, ...]:
        """One complete call for its results, with what has to precede it."""
        self.before_block()
        if self.before_call is not None:
            self.before_call()
        return (self.checked or self.call)()
