"""Bytes and operations of what several ops do: a pass over elements, a pass over rows of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...measure.case import FORWARD, FORWARD_BACKWARD, Traffic, numel


def elementwise_traffic(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[str], Traffic]:
    """Forward reads and writes the tensor once; backward reads what was kept and the gradient, writes one."""
    size = numel(shape) * dtype.itemsize
    flops = 4 * numel(shape)

    def of(mode: str) -> Traffic:
        if mode == FORWARD:
            return Traffic(size, size, flops)
        return Traffic(3 * size, 2 * size, 2 * flops)

    return of


def rows_traffic(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    classes_dim: int = 1,
    dense_output: bool = False,
    dense_target: bool = False,
) -> Callable[[str], Traffic]:
    """Traffic of an op over rows of classes (softmax, cross-entropy, ...).

    Forward reads the input once and writes either as many elements (``dense_output``) or one value per
    row. Backward is a separate call: it reads one input-sized tensor again (``dense_output``: the
    output and its gradient) and writes the input's gradient. Class indices are 8 bytes per row; with
    ``dense_target`` the targets are input-sized probabilities. FLOPs: about 4 per element and pass.
    """
    size = dtype.itemsize
    elements = numel(shape)
    rows = elements // shape[classes_dim]
    target = elements * size if dense_target else (0 if dense_output else rows * 8)

    def traffic(mode: str) -> Traffic:
        read, written = elements * size + target, elements * size if dense_output else rows * size
        flops = 4 * elements
        if mode == FORWARD_BACKWARD:
            read += elements * size * (2 if dense_output else 1) + target
            written += elements * size
            flops *= 2
        return Traffic(read, written, flops)

    return traffic
