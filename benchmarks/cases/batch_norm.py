"""Cases of ``batch_norm`` in training with ReLU, without and with a residual: shapes of ResNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs, Traffic, numel
from .tools.sizes import sweep


def bn_add(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    residual: Tensor | None = None,
) -> Tensor:
    output = torch.nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training)
    return output if residual is None else output + residual


def bn_relu(**inputs: Any) -> Tensor:
    return bn_add(**inputs).relu()


def margin(**inputs: Any) -> Tensor:
    return bn_add(**inputs).abs()


def traffic(shape: tuple[int, ...], size: int, residual: bool) -> Callable[[str], Traffic]:
    """Training needs the whole input before it can write: two reads of it, and backward two of it and of the
    gradient. The sign of ReLU's input is one bit per element where a residual took part.
    """
    elements = numel(shape)
    tensor, mask = elements * size, elements // 8 if residual else 0

    def of(mode: str) -> Traffic:
        forward = Traffic((2 + residual) * tensor, tensor + mask, 5 * elements)
        if mode == FORWARD:
            return forward
        return Traffic(
            forward.read + 4 * tensor + 2 * mask, forward.written + (1 + residual) * tensor, 13 * elements
        )

    return of


def case(
    *shape: int, residual: bool = False, dtype: torch.dtype = torch.float32, last: bool = False, **more
) -> Case:
    def inputs(device: torch.device) -> Inputs:
        def draw(*sizes: int) -> Tensor:
            tensor = torch.randn(sizes, device=device).to(dtype)
            if last and len(sizes) == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            return tensor.requires_grad_()

        drawn: Inputs = {
            "input": draw(*shape),
            "running_mean": torch.zeros(shape[1], dtype=dtype, device=device),
            "running_var": torch.ones(shape[1], dtype=dtype, device=device),
            "weight": draw(shape[1]),
            "bias": draw(shape[1]),
        }
        if residual:
            drawn["residual"] = draw(*shape)
        return drawn

    names = ("input", "weight", "bias", *(("residual",) if residual else ()))
    label = f"{list(shape)}{', residual' if residual else ''}, relu{', channels_last' if last else ''}"
    return Case(
        "batch_norm",
        label,
        inputs=inputs,
        traffic=traffic(shape, dtype.itemsize, residual),
        dtype=dtype,
        differentiable=names,
        options={"training": True},
        pyops_options={"activation": "relu"},
        torch_call=bn_relu,
        margin=margin,
        **{"modes": (FORWARD_BACKWARD,), "channels_last": True, **more},
    )


CASES = [
    case(2, 8, 8, 8, overhead=True, channels_last=False, modes=(FORWARD, FORWARD_BACKWARD)),
    case(32, 64, 28, 28, quick=True),
    case(32, 64, 112, 112),
    case(32, 64, 112, 112, residual=True),
    case(32, 64, 112, 112, last=True),
    case(32, 64, 112, 112, residual=True, last=True),
    case(32, 256, 14, 14, residual=True),
    case(32, 512, 7, 7, residual=True),
    case(32, 64, 56, 56, residual=True, dtype=torch.bfloat16),
    *sweep(lambda k: case(k, 16, 8, 8)),
    case(128, 256, 56, 56, residual=True, dtype=torch.bfloat16, devices=("cuda",)),
    case(128, 256, 56, 56, residual=True, dtype=torch.bfloat16, last=True, devices=("cuda",)),
]
