"""What a layer or fused step takes at least: operations, and bytes read and written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, RNNBase

from .ops import Member
from .sample import tensors_in


def flops_and_bytes(members: Sequence[Member], inputs: Sequence[Tensor], gradient: bool) -> tuple[int, int]:
    """Of one call of these ops, with backward if ``gradient``.

    Operations are those of products (convolutions, linear and recurrent layers), as
    ``torch.utils.flop_counter`` counts them. Bytes: inputs, parameters and result of the whole once, which a
    backward reads again, or writes gradients of, twice.
    """
    value: Any = inputs[0]
    flops = 0
    with torch.no_grad():
        for member in members:
            given = value
            value = member.as_written(value, *(inputs[1:] if member.kind == "add" else ()))
            flops += _flops(member.module, given, value)
    passes = 2 + any(t.requires_grad for t in inputs) if gradient else 1
    modules = [member.module for member in members if member.module is not None]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    moved = _bytes(inputs) + _bytes(parameters) + _bytes(tensors_in(value))
    return flops * passes, moved * (3 if gradient else 1)


def _flops(module: Module | None, input: Tensor, result: Any) -> int:
    if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)):
        return 2 * int(result.numel()) * module.weight[0].numel()
    if isinstance(module, RNNBase):
        weights = sum(p.numel() for p in module.parameters() if p.dim() == 2)
        return 2 * (input.numel() // input.shape[-1]) * weights
    return 0


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
