"""Activations; formulas as in csrc/math/activation.h."""

import torch
import triton
import triton.language as tl

from pyops._library import implement
from pyops.kinds import Activation

from .tools.activation import activate, check_activation, derive_from_input, derive_from_output
from .tools.checks import check_floating, check_packed, check_same_order
from .tools.elements import block_of_elements, launch_elementwise, load_elements, store_elements


@triton.jit(do_not_specialize=["n"])
def _forward_kernel(x_ptr, y_ptr, n: tl.int64, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    i, full = block_of_elements(n, BLOCK)
    x = load_elements(x_ptr, i, n, full)
    store_elements(y_ptr, i, n, full, activate(x, ACTIVATION, x_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["n"])
def _backward_kernel(
    saved_ptr, grad_ptr, dx_ptr, n: tl.int64, ACTIVATION: tl.constexpr,
    FROM_OUTPUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i, full = block_of_elements(n, BLOCK)
    saved = load_elements(saved_ptr, i, n, full)
    grad = load_elements(grad_ptr, i, n, full)
    if FROM_OUTPUT:
        dx = derive_from_output(saved, grad, ACTIVATION)
    else:
        dx = derive_from_input(saved, grad, ACTIVATION, saved_ptr.dtype.element_ty)
    store_elements(dx_ptr, i, n, full, dx)


def _forward_into(input: torch.Tensor, output: torch.Tensor, activation: Activation, op: str) -> None:
    check_activation(activation, op)
    launch_elementwise(_forward_kernel, (input, output), ACTIVATION=activation)


@implement("pyops_triton", "activation_forward")
def activation_forward(input: torch.Tensor, kind: int, alpha: float, beta: float) -> torch.Tensor:
    """The activation of a dense ``input``, in its shape, dtype and strides."""
    op = "activation_forward"
    check_floating(input, op, "input")
    check_packed(input, op, "input")
    output = torch.empty_like(input)
    _forward_into(input, output, Activation(kind, alpha, beta), op)
    return output


@implement("pyops_triton", "activation_forward_")
def activation_forward_(input: torch.Tensor, kind: int, alpha: float, beta: float) -> None:
    """The same, in place."""
    op = "activation_forward_"
    check_floating(input, op, "input")
    check_packed(input, op, "input")
    _forward_into(input, input, Activation(kind, alpha, beta), op)


@implement("pyops_triton", "activation_backward")
def activation_backward(
    grad_output: torch.Tensor,
    saved: torch.Tensor,
    kind: int,
    alpha: float,
    beta: float,
    saved_is_output: bool,
) -> torch.Tensor:
    """Gradient of the input; ``saved`` is the output or the input, laid out as ``grad_output``."""
    op = "activation_backward"
    check_floating(saved, op, "saved")
    check_packed(saved, op, "saved")
    check_packed(grad_output, op, "grad_output")
    check_same_order(grad_output, op, "grad_output", saved)
    activation = Activation(kind, alpha, beta)
    check_activation(activation, op, saved_is_output)
    grad_input = torch.empty_like(saved)
    launch_elementwise(
        _backward_kernel, (saved, grad_output, grad_input),
        ACTIVATION=activation, FROM_OUTPUT=saved_is_output,
    )  # fmt: skip
    return grad_input
