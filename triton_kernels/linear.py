"""linear with bias, activation and dropout.

The product (gemm.py) adds the bias and applies a cheap activation to its tiles. Others are a pass of their
own over its result, together with dropout: they would spill the tile's registers, and the eight elements that
share an evaluation of Philox lie in different threads of a tile.
"""

import torch

from pyops._library import implement
from pyops.kinds import Activation

from .dropout import bias_activation_dropout_backward, bias_activation_dropout_forward, check_mask
from .gemm import leading_stride, matmul
from .tools.activation import CHEAP, NO_ACTIVATION, check_activation
from .tools.checks import check_dense, check_floating


def _matrix(tensor: torch.Tensor, op: str, name: str) -> torch.Tensor:
    """``tensor`` [*, K] as a matrix that a product can take, without a copy."""
    if tensor.dim() == 0:
        raise RuntimeError(f"{op}: {name} must have at least 1 dimension, got a 0-d tensor")
    if tensor.dim() != 2:
        check_dense(tensor, op, name, like=tensor, dtype=tensor.dtype)
        rows = 1
        for size in tensor.shape[:-1]:
            rows *= size
        tensor = tensor.view(rows, tensor.shape[-1])
    leading_stride(tensor, op, name)
    return tensor


def _check_operands(rows: torch.Tensor, columns: int, weight: torch.Tensor, op: str, name: str) -> None:
    """``weight`` must be a matrix, and ``rows`` have as many columns as ``columns`` says weight has."""
    check_floating(rows, op, name)
    if weight.dim() != 2:
        raise RuntimeError(f"{op}: weight must have 2 dimensions, got {weight.dim()}")
    if weight.dtype != rows.dtype or weight.device != rows.device:
        raise RuntimeError(
            f"{op}: weight must be {rows.dtype} on {rows.device}, got {weight.dtype} on {weight.device}"
        )
    size = weight.shape[columns]
    if rows.dim() == 0 or rows.shape[-1] != size:
        raise RuntimeError(f"{op}: {name} must have {size} in its last dimension, got {tuple(rows.shape)}")


@implement("pyops_triton", "linear_forward")
def linear_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seed: torch.Tensor | None,
    p: float,
    kind: int,
    alpha: float,
    beta: float,
    save_input_of_activation: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dropout(activation(``input`` [*, K] @ ``weight`` [N, K].T + ``bias``)), and the activation's input."""
    op = "linear"
    _check_operands(input, 1, weight, op, "input")
    matrix = _matrix(input, op, "input")
    _matrix(weight, op, "weight")
    if bias is not None:
        check_dense(bias, op, "bias", like=input, dtype=input.dtype, shape=weight.shape[:1])
    activation = Activation(kind, alpha, beta)
    check_activation(activation, op)
    check_mask(seed, p, op, input)
    product = input.new_empty((*input.shape[:-1], weight.shape[0]))
    fused = kind in CHEAP and seed is None and not save_input_of_activation
    if product.numel() > 0:
        applied = activation if fused else NO_ACTIVATION
        matmul(product.view(-1, weight.shape[0]), matrix, weight.t(), bias=bias, activation=applied)
    if fused:
        return product, input.new_empty(0)
    output = bias_activation_dropout_forward(product, None, None, seed, p, *activation, 0)
    return output, product if save_input_of_activation else input.new_empty(0)


@implement("pyops_triton", "linear_backward")
def linear_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor | None,
    weight: torch.Tensor,
    saved: torch.Tensor | None,
    seed: torch.Tensor | None,
    p: float,
    kind: int,
    alpha: float,
    beta: float,
    saved_is_output: bool,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of input, weight and bias; empty where not needed."""
    op = "linear"
    _check_operands(grad_output, 0, weight, op, "grad_output")
    check_dense(grad_output, op, "grad_output", like=grad_output, dtype=grad_output.dtype)
    _matrix(weight, op, "weight")
    check_mask(seed, p, op, grad_output)
    if needs_weight:
        if input is None:
            raise RuntimeError(f"{op}: input must be given for the weight's gradient")
        _check_operands(input, 1, weight, op, "input")
        if input.shape[:-1] != grad_output.shape[:-1]:
            raise RuntimeError(
                f"{op}: input must have the leading dimensions of grad_output, got {tuple(input.shape)}"
            )
    dz, grad_bias = grad_output, weight.new_empty(0)
    if kind != 0 or seed is not None or needs_bias:
        dim = grad_output.dim() - 1
        dz, grad_bias = bias_activation_dropout_backward(
            grad_output, saved, None, seed, p, kind, alpha, beta, dim, saved_is_output, needs_bias
        )
    rows = _matrix(dz, op, "grad_output")
    grad_input = weight.new_empty((*grad_output.shape[:-1], weight.shape[1]) if needs_input else (0,))
    if needs_input and grad_input.numel() > 0:
        matmul(grad_input.view(-1, weight.shape[1]), rows, weight)
    grad_weight = weight.new_empty(weight.shape if needs_weight else (0,))
    if needs_weight:
        matmul(grad_weight, rows.t(), _matrix(input, op, "input"))
    return grad_input, grad_weight, grad_bias
