"""Sums over the pixels of the batch, cut into parts whose sums are added up in order."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..tools.checks import acc_dtype
from ..tools.launch import cdiv
from ..tools.merge import merge_parts
from .tiles import ENOUGH_TILES, PixelTiles

_STEPS_PER_PART = 8  # at least: blocks of pixels


class SumTensors(NamedTuple):
    """What a sum over pixels reads and writes.

    ``grad``: the output's gradient, 0 where ``relu_output``, unless None, is not positive; ``input``: the
    convolution's input; ``weight_sums`` and ``bias_sums``: the parts' sums, unless None.
    """

    grad: torch.Tensor
    relu_output: torch.Tensor | None
    input: torch.Tensor
    weight_sums: torch.Tensor | None
    bias_sums: torch.Tensor | None


@dataclass(frozen=True)
class Parts:
    """Blocks of pixels, ``steps`` of them in each of ``count`` parts."""

    blocks: PixelTiles
    count: int
    steps: int

    @property
    def split(self) -> tuple[int, int, int]:
        """What a kernel gets: the number of blocks, of parts, and of blocks in each part."""
        return self.blocks.count, self.count, self.steps

    @staticmethod
    def of(blocks: PixelTiles, tiles: int, enough: int = ENOUGH_TILES) -> "Parts":
        """As many parts as it takes for ``tiles`` programs each to be ``enough`` in all."""
        most = max(1, blocks.count // _STEPS_PER_PART)
        steps = max(1, cdiv(blocks.count, min(most, cdiv(enough, tiles))))
        return Parts(blocks, max(1, cdiv(blocks.count, steps)), steps)


class Sums:
    """Where parts leave their sums: in the gradient itself if there is but one part."""

    def __init__(self, total: torch.Tensor | None, parts: int) -> None:
        self.total = total
        self.partials: torch.Tensor | None = None
        if total is not None and parts > 1:
            shape = (parts, total.numel())
            self.partials = torch.empty(shape, dtype=acc_dtype(total.dtype), device=total.device)

    @property
    def target(self) -> torch.Tensor | None:
        return self.total if self.partials is None else self.partials

    def finish(self) -> None:
        if self.total is not None and self.partials is not None:
            merge_parts(self.partials, self.total)
