"""The same shape in other strides, with the values that such a layout can hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def transposed(t: Tensor) -> Tensor:
    """Dimensions in reverse order in memory."""
    reverse = tuple(reversed(range(t.dim())))
    return t.permute(reverse).contiguous().permute(reverse)


def sliced(t: Tensor) -> Tensor:
    """Every second element of something twice as wide in every dimension."""
    if t.dim() == 0:
        return t.new_tensor([0, 0]).to(t)[1].copy_(t)
    wide = t.new_full([2 * n + 1 for n in t.shape], 77 if not t.is_floating_point() else torch.nan)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in t.shape)]
    return view.copy_(t)


def expanded(t: Tensor) -> Tensor:
    """The first element along every dimension but the second, with stride 0."""
    if t.dim() == 0 or t.numel() == 0:
        return t
    index = tuple(slice(None) if i == 1 else slice(0, 1) for i in range(t.dim()))
    return t[index].clone().expand(t.shape)


def offset(t: Tensor) -> Tensor:
    """Contiguous, but beginning one element into its memory: aligned to nothing but the element."""
    return torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)


def channels_last(t: Tensor) -> Tensor:
    """Dimension 1 last in memory."""
    if t.dim() < 3:
        return t
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "sliced": sliced,
    "expanded": expanded,
    "offset": offset,
    "channels_last": channels_last,
}
