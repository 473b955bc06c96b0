"""Upsampling modules: torch's classes with this library's function."""

import torch.nn
from torch import Tensor

from .. import functional as F

__all__ = ["Upsample", "UpsamplingNearest2d"]


class Upsample(torch.nn.Upsample):
    """:class:`torch.nn.Upsample` through :func:`pyops.functional.interpolate`; same shapes."""

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            self.recompute_scale_factor,
        )


class UpsamplingNearest2d(torch.nn.UpsamplingNearest2d):
    """:class:`torch.nn.UpsamplingNearest2d` through :func:`pyops.functional.interpolate`; same shapes."""

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(input, self.size, self.scale_factor, self.mode)
