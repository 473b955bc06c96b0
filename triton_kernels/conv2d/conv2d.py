"""Two-dimensional convolution with bias, residual and activation; geometry as in csrc/math/conv2d.h.

Output and data gradient are one implicit matrix product (correlate.py), the weight's gradient is another
(weight.py). Where a group has one input channel, they are sums over taps instead (depthwise.py).
"""

from collections.abc import Sequence

import torch

from pyops._library import implement
from pyops.kinds import Activation
from pyops.layouts import empty_image, is_channels_last

from ..activation import activation_backward, activation_forward, activation_forward_
from ..tools.activation import CHEAP, IDENTITY, RELU, check_activation
from .correlate import correlate
from .depthwise import correlate_depthwise, depthwise_weight_gradient, is_depthwise
from .geometry import Shape, check_bias, check_conv2d, check_like_output
from .transpose import staged
from .weight import weight_gradient


@implement("pyops_triton", "conv2d_forward")
def conv2d_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kind: int,
    alpha: float,
    beta: float,
    save_input_of_activation: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """activation(conv2d(``input``, ``weight``) + ``bias`` + ``residual``), and the activation's input."""
    op = "conv2d_forward"
    activation = Activation(kind, alpha, beta)
    shape = check_conv2d(input, weight, stride, padding, dilation, groups, activation, op)
    check_bias(bias, op, input, shape)
    check_like_output(residual, op, "residual", input, shape)
    output = empty_image(input, shape.output, shape.channels_last)
    saved = torch.empty_like(output) if save_input_of_activation else None
    run = correlate_depthwise if is_depthwise(shape) else correlate
    options = {"gradient": False, "bias": bias, "residual": residual}
    input = staged(input, shape)
    if kind in CHEAP:
        run(output, input, weight, shape, saved=saved, activation=activation, **options)
    elif saved is None:
        run(output, input, weight, shape, **options)
        activation_forward_(output, *activation)
    else:
        run(saved, input, weight, shape, **options)
        output = activation_forward(saved, *activation)
    return output, input.new_empty((0,)) if saved is None else saved


def product_gradients(
    grad: torch.Tensor,
    relu_output: torch.Tensor | None,
    input: torch.Tensor,
    weight: torch.Tensor,
    shape: Shape,
    needs: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of input, weight and bias where needed.

    ``grad`` counts as 0 where ``relu_output``, unless None, is not positive.
    """
    needs_input, needs_weight, needs_bias = needs
    depthwise = is_depthwise(shape)
    none = input.new_empty((0,))
    grad_input = grad_weight = grad_bias = none
    input_is_last = is_channels_last(input)
    masked = staged(grad, shape, relu_output)
    grad, relu_output = masked, relu_output if masked is grad else None
    if needs_weight:
        input = staged(input, shape)
    if needs_input:
        grad_input = empty_image(input, input.shape, input_is_last)
        run = correlate_depthwise if depthwise else correlate
        run(grad_input, grad, weight, shape, gradient=True, relu_output=relu_output)
    if needs_weight:
        grad_weight = empty_image(weight, weight.shape, is_channels_last(weight))
    if needs_bias:
        grad_bias = weight.new_empty((shape.out_channels,))
    if needs_weight and not depthwise:
        weight_gradient(grad, relu_output, input, grad_weight, grad_bias if needs_bias else None, shape)
    elif needs_weight or needs_bias:
        depthwise_weight_gradient(
            grad,
            relu_output,
            input,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            shape,
        )
    return grad_input, grad_weight, grad_bias


@implement("pyops_triton", "conv2d_backward")
def conv2d_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    saved: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kind: int,
    alpha: float,
    beta: float,
    saved_is_output: bool,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    needs_residual: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of input, weight, bias and residual; empty where not needed."""
    op = "conv2d_backward"
    activation = Activation(kind, alpha, beta)
    shape = check_conv2d(input, weight, stride, padding, dilation, groups, activation, op)
    check_like_output(grad_output, op, "grad_output", input, shape)
    check_like_output(saved, op, "saved", input, shape)
    identity = kind == IDENTITY.value
    if saved is None and not identity:
        raise RuntimeError(f"{op}: saved must be given for an activation")
    check_activation(activation, op, saved_is_output)
    grad, relu_output = grad_output, None
    # ReLU's gradient is formed where it is read; what takes longer is formed once.
    if kind == RELU.value and saved_is_output and not needs_residual:
        relu_output = saved
    elif not identity or needs_residual:  # which may not be grad_output itself
        grad = activation_backward(
            grad_output, grad_output if identity else saved, *activation, identity or saved_is_output
        )
    return (
        *product_gradients(grad, relu_output, input, weight, shape, (needs_input, needs_weight, needs_bias)),
        grad if needs_residual else input.new_empty((0,)),
    )
