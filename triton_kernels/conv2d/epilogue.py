"""What follows the sums of a correlation, in every one of its algorithms."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..tools.activation import activate


class Operands(NamedTuple):
    """The tensors of a correlation.

    ``source``: what is correlated, 0 where ``relu_output``, unless None, is not positive; ``weight``;
    ``bias`` and ``residual``: added to the sums, unless None; ``target``: the result; ``saved``: gets the
    input of the activation, unless None.
    """

    source: torch.Tensor
    relu_output: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    target: torch.Tensor
    saved: torch.Tensor | None


@triton.jit
def finish(operands, total, offset, mask, channel, channel_exists, ACTIVATION: tl.constexpr):
    """What follows the sum: bias, residual, saving the activation's input, activation, one rounding."""
    storage: tl.constexpr = operands.target.dtype.element_ty
    if operands.bias is not None:
        total += tl.load(operands.bias + channel, mask=channel_exists, other=0.0).to(total.dtype)
    if operands.residual is not None:
        total += tl.load(operands.residual + offset, mask=mask, other=0.0).to(total.dtype)
    if operands.saved is not None:
        tl.store(operands.saved + offset, total.to(storage), mask=mask)
    total = activate(total, ACTIVATION, storage)
    tl.store(operands.target + offset, total.to(storage), mask=mask)
