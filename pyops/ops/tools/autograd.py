"""What the ops' autograd functions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def take_written(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """The gradients that forward wrote and saved, for the first backward; None for a later one.

    They are given away once: their new owner may change them, which a later backward (retain_graph) must not
    see. ``.data`` has a version of its own, so that autograd does not take such a change for an error.
    """
    if not ctx.is_fresh:
        return None
    ctx.is_fresh = False
    return tuple(gradient.data for gradient in gradients)


#: Whether the last upstream gradient of a scalar loss in these dtypes was 1. In float16 it is not at first,
#: because a gradient scaler is usual.
_upstream_is_one = {torch.bfloat16: True, torch.float16: False}


def expects_one(dtype: torch.dtype, weight: Tensor | None) -> bool:
    """Whether forward on the CPU may write the gradient of a scalar loss for an upstream gradient of 1.

    In 16 bits a written gradient cannot be scaled: it would be rounded twice, and in float16 small ones are
    lost. It is computed anew, so the guess is the last upstream gradient of that dtype. Loss and gradient
    have the same bits whichever way they went; with a weight they could differ, since the two ways add
    weights up in different orders.
    """
    return dtype.itemsize >= 4 or (weight is None and _upstream_is_one[dtype])


def is_one(grad_loss: Tensor, dtype: torch.dtype) -> bool:
    """Whether the upstream gradient of a scalar loss of 16-bit tensors of ``dtype`` on the CPU is 1.

    It is remembered for :func:`expects_one`. Where it has no value to look at (a transform's, a compiler's),
    it counts as another.
    """
    if (
        torch.compiler.is_compiling()
        or type(grad_loss) is not Tensor
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    found = grad_loss.item() == 1.0
    _upstream_is_one[dtype] = found
    return found


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)``, without the 1.5 us in which it looks for wrappers of ``torch.func``.

    That is a twentieth of what a small op costs, forward and backward. ``torch.func``'s transforms and
    torch.compile get the whole of it.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def differentiable_gradients(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], grad_outputs: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """Gradients of ``function(*inputs)`` that can be differentiated again.

    The kernels' backward cannot: when autograd asks for a graph of it (``create_graph=True``), the op's
    reference formula is differentiated instead.
    """
    with torch.enable_grad():
        outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if g is not None]
    return torch.autograd.grad(
        [o for o, _ in pairs], inputs, [g for _, g in pairs], create_graph=True, allow_unused=True
    )


def may_be_overwritten(function: str, input: Tensor) -> bool:
    """Whether ``inplace_backward`` writes the gradient over ``input``: torch.compile plans memory itself.

    Raises:
        RuntimeError: ``input`` is a leaf, whose value is the caller's.
    """
    if not (torch.is_grad_enabled() and input.requires_grad):
        return False
    if input.is_leaf:
        raise RuntimeError(
            f"{function}: inplace_backward would overwrite a leaf tensor that requires grad; "
            "pass the output of a layer, or inplace_backward=False"
        )
    return not torch.compiler.is_compiling()
