"""Random changes of training images: those of the same class that were not taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

#: A crop is shifted by up to this share of a side, 4 pixels of 32.
_SHIFT = 1 / 8


class Augmentation:
    """``flip`` mirrors every second image left to right; ``crop`` surrounds an image with black and cuts it
    out anew, shifted by up to an eighth of a side each way.

    The draws are made once for an epoch, for each image its own: they depend on the seed alone, not on the
    batch size, the number of processes or on where a run was resumed. Without names nothing is drawn.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._flips, self._crops = "flip" in names, "crop" in names
        self._flipped = torch.empty(0)
        self._rows = self._columns = torch.empty(0)
        self._margins = (0, 0)

    def draw(self, number: int, shape: Sequence[int], generator: torch.Generator) -> None:
        """Draw what becomes of ``number`` images of ``shape`` (C, H, W) in the epoch that begins."""
        if self._flips:
            self._flipped = torch.rand(number, generator=generator) < 0.5
        if self._crops:
            down, right = (math.ceil(side * _SHIFT) for side in shape[-2:])
            self._margins = (down, right)
            self._rows = torch.randint(2 * down + 1, (number,), generator=generator)
            self._columns = torch.randint(2 * right + 1, (number,), generator=generator)

    def __call__(self, images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """``images`` [N, C, H, W], which have the ``indices`` among all, changed as was drawn."""
        numbers = indices.cpu()
        if self._flips:
            flipped = self._flipped[numbers].to(images.device)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        if self._crops:
            (down, right), (height, width) = self._margins, images.shape[-2:]
            padded = nn.functional.pad(images, (right, right, down, down))
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, rows, columns, H, W]
            rows, columns = (drawn[numbers].to(images.device) for drawn in (self._rows, self._columns))
            images = windows[torch.arange(len(images), device=images.device), :, rows, columns]
        return images
