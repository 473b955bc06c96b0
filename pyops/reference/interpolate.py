"""Nearest-neighbour interpolation as a torch formula."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dtypes import acc_dtype


def interpolate_nearest(
    input: Tensor, output_size: Sequence[int], scale_factors: Sequence[float], exact: bool
) -> Tensor:
    """``input`` [N, C, *spatial] with its spatial dimensions resized to ``output_size``.

    A scale factor of 0 means the ratio of the sizes. The index formula is float32, as in ATen.
    """
    result = input.to(acc_dtype(input.dtype)) if input.is_floating_point() else input
    for dim, (size, factor) in enumerate(zip(output_size, scale_factors, strict=True), start=2):
        positions = torch.arange(size, dtype=torch.float32, device=input.device)
        if factor > 0:
            scale = torch.full((), 1.0 / factor, dtype=torch.float32)
        else:
            scale = torch.full((), input.shape[dim], dtype=torch.float32) / size
        source = ((positions + (0.5 if exact else 0.0)) * scale.to(input.device)).floor().long()
        result = result.index_select(dim, source.clamp(max=input.shape[dim] - 1))
    return result.to(input.dtype)
