"""How tensors lie in memory: memory formats, the permutations that make a tensor contiguous, and back.

The kernels take contiguous tensors. A dense tensor with other strides (channels_last, a transpose) is
permuted into the order of its memory, which copies nothing; the result is permuted back (:func:`inverse`).

torch's ops do not agree on when an output is channels_last, so there are three questions here:
:func:`is_channels_last` as convolutions ask it, :func:`lies_channels_last` as poolings do, and
:func:`strides_are_channels_last` as interpolation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------- permutations


def dense_order(tensor: Tensor) -> list[int] | None:
    """The permutation that makes ``tensor`` contiguous, largest stride first; None if there is none.

    There is one for channels_last and transposed tensors: their memory has no gaps and no element twice.
    """
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda i: (-strides[i], i))
    return order if tensor.permute(order).is_contiguous() else None


def copied_densely(tensor: Tensor) -> Tensor:
    """A dense copy of a tensor with gaps, in the order of its strides: outputs of torch's ops lie so."""
    return tensor.clone(memory_format=torch.preserve_format)


def inverse(order: list[int]) -> list[int]:
    """The permutation that undoes ``order``."""
    return sorted(range(len(order)), key=order.__getitem__)


def in_order(tensor: Tensor | None, order: list[int] | None) -> Any:
    """``tensor`` with its dimensions in that order, a view."""
    return tensor if tensor is None or order is None else tensor.permute(order)


def dense_in_order(tensor: Tensor | None, order: list[int] | None) -> Tensor | None:
    """``tensor`` such that :func:`in_order` copies nothing."""
    if tensor is None or order is None:
        return None if tensor is None else tensor.contiguous()
    laid_out = tensor.permute(order)
    return tensor if laid_out.is_contiguous() else laid_out.contiguous().permute(inverse(order))


def out_of_order(result: Tensor, order: list[int] | None) -> Tensor:
    """A kernel's result in the order of the argument's dimensions, and no view for autograd.

    To be called where autograd does not look: within ``forward`` of an autograd function, or without a
    gradient.
    """
    return result if order is None else no_view(result.permute(inverse(order)))


def no_view(result: Tensor) -> Tensor:
    """A kernel's result as a tensor of its own, on the same memory.

    A change in place of a view (``relu_`` behind the op) is an error where the view was made within an
    autograd function, and elsewhere copies whole gradients (CopySlices). Nobody else has the kernel's tensor,
    so no view is needed.
    """
    return result.detach()


def laid_out_as(gradient: Tensor, like: Tensor) -> Tensor:
    """``gradient`` with the strides of the dense tensor ``like``, copied if it has others."""
    if like.is_contiguous():
        return gradient.contiguous()
    if gradient.stride() == like.stride():
        return gradient
    return torch.empty_like(like).copy_(gradient)


# ------------------------------------------------------------------------------------------------- images


def is_channels_last(image: Tensor) -> bool:
    """Whether outputs follow a dense 4-D tensor in having the channels last.

    Where both formats are the same in memory, the strides tell in which one the tensor was made, as in torch.
    """
    if not image.is_contiguous():
        return image.is_contiguous(memory_format=torch.channels_last)
    _, channels, height, width = image.shape
    strides = image.stride()
    return strides[1] == 1 and strides[3] == channels and channels * height * width > 1


def memory_format(channels_last: bool) -> torch.memory_format:
    """torch's name of the format."""
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_image(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """A new 4-D tensor of ``shape`` with the dtype and device of ``like``."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=memory_format(channels_last)
    )


def dense(image: Tensor, channels_last: bool) -> Tensor:
    """The image in that memory format, copied if it lies in another."""
    return image.contiguous(memory_format=memory_format(channels_last))


def dense_in_either_format(image: Tensor) -> Tensor:
    """The image if it is dense in one of the two formats, else a copy in the one that its strides suggest."""
    if image.is_contiguous() or image.is_contiguous(memory_format=torch.channels_last):
        return image
    return dense(image, strides_are_channels_last(image))


def lies_channels_last(image: Tensor) -> bool:
    """Whether a [N, C, H, W] tensor is pooled, and its output returned, in channels_last order."""
    if image.is_contiguous() or image.dim() != 4:
        return False
    if image.is_contiguous(memory_format=torch.channels_last):
        return True
    # torch's suggestion for tensors with gaps or other orders: channels innermost, images outermost.
    n, c, h, w = image.stride()
    return bool(0 < c <= w <= h <= n and c < h)


def strides_are_channels_last(tensor: Tensor) -> bool:
    """Whether torch makes an output like ``tensor`` [N, C, *d] channels_last: by the strides alone."""
    if tensor.dim() < 4 or tensor.is_contiguous() or tensor.stride(1) == 0:
        return False
    least = 0
    for dim in (1, *range(tensor.dim() - 1, 1, -1), 0):
        stride = tensor.stride(dim)
        if stride < least or (dim == 0 and least == tensor.stride(1)):
            return False
        least = stride * max(tensor.shape[dim], 1)
    return True


# ------------------------------------------------------------------------------- images in memory order


def in_memory_order(tensor: Tensor, channels_last: bool) -> Tensor:
    """A contiguous tensor: [N, H, W, C] if ``channels_last``, else in the given order of dimensions."""
    return (tensor.permute(0, 2, 3, 1) if channels_last else tensor).contiguous()


def in_torch_order(tensor: Tensor, channels_last: bool) -> Tensor:
    """The inverse of :func:`in_memory_order`."""
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor


def result_in_torch_order(result: Tensor, channels_last: bool) -> Tensor:
    """The same of a kernel's result, and no view for autograd (:func:`out_of_order`)."""
    return no_view(in_torch_order(result, True)) if channels_last else result


def image_size(shape: Sequence[int], channels_last: bool) -> Sequence[int]:
    """Height and width of a tensor of ``shape`` in memory order."""
    return shape[1:3] if channels_last else shape[-2:]


def resized(shape: Sequence[int], size: Sequence[int], channels_last: bool) -> list[int]:
    """The shape of a tensor in memory order with another height and width."""
    if channels_last:
        return [shape[0], *size, shape[3]]
    return [*shape[:-2], *size]
