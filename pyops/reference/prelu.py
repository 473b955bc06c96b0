"""The derivative of PReLU as torch's differentiable formula."""

from __future__ import annotations

import torch
from torch import Tensor


def prelu_gradient(grad: Tensor, input: Tensor, weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Gradients of prelu's input and slopes, which lie along ``dim``; differentiable in all tensors."""
    single = weight.numel() == 1
    slopes = weight.view([-1 if i == dim and not single else 1 for i in range(input.dim())])
    grad_input, products = torch.ops.aten._prelu_kernel_backward(grad, input, slopes.expand_as(input))
    return grad_input, products.sum_to_size(slopes.shape).view_as(weight)
