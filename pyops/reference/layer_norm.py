"""Layer and group normalisation as torch's own functions, for rows as the kernels see them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kinds import Activation
from .activation import activate


class Rows(NamedTuple):
    """A contiguous tensor as rows of ``size`` elements, each of which is normalised.

    A row's elements belong to channels of ``inner`` neighbours. The channels of ``groups`` rows, one after
    the other, have a weight and a bias each.
    """

    size: int
    inner: int
    groups: int


def layer_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Rows, eps: float, activation: Activation
) -> Tensor:
    """activation(weight (x - mean) / sqrt(var + eps) + bias) of each row."""
    size, inner, groups = rows
    if inner == groups == 1:
        normalized = torch.nn.functional.layer_norm(input.reshape(-1, size), (size,), weight, bias, eps)
        return activate(normalized, activation).reshape(input.shape)
    images = input.reshape(-1, groups * size // inner, inner)
    normalized = torch.nn.functional.group_norm(images, groups, weight, bias, eps)
    return activate(normalized, activation).reshape(input.shape)
