"""What the cases of convolutions share: of square images, with square kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...measure.case import Inputs, numel


def convolution_inputs(
    shape: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Callable[[torch.device], Inputs]:
    """Images of ``shape``, and a ``weight`` and a bias that keep their variance."""

    def inputs(device: torch.device) -> Inputs:
        def draw(*sizes: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(sizes, device=device) * scale).to(dtype).requires_grad_()

        scale = numel(weight[1:]) ** -0.5
        return {"input": draw(*shape), "weight": draw(*weight, scale=scale), "bias": draw(weight[0])}

    return inputs


def convolution_label(
    shape: tuple[int, ...], weight: tuple[int, ...], stride: int, padding: int, groups: int = 1
) -> str:
    label = f"{list(shape)} -> {weight[0]}, {weight[2]}x{weight[3]}"
    for name, value, default in (("stride", stride, 1), ("padding", padding, 0), ("groups", groups, 1)):
        label += f" {name} {value}" if value != default else ""
    return label
