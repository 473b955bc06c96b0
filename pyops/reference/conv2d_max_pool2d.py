"""Convolution, activation and max pooling, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .conv2d import conv2d


def conv2d_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: tuple[Any, ...],
    pool: tuple[Any, ...],
) -> Tensor:
    """max_pool2d(activation(conv2d(input, weight) + bias)) of ``input`` [N, C, H, W].

    ``convolution`` is stride, padding, dilation, groups and activation of ``conv2d``; ``pool`` is kernel,
    stride, padding, dilation and ceil_mode of ``max_pool2d``.
    """
    return torch.max_pool2d(conv2d(input, weight, bias, None, *convolution), *pool)
