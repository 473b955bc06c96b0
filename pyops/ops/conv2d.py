"""Two-dimensional convolution with bias, residual and activation: schemas, autograd and public function.

Kernels: ``conv2d/`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``; the geometry is in
``csrc/math/conv2d.h``. A backend without a kernel for it uses the reference formula.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library, backends
from ..dtypes import autocast
from ..kinds import ACTIVATION_SCHEMA, IDENTITY, Activation, parse
from ..layouts import dense, dense_in_either_format, empty_image, is_channels_last, no_view
from ..reference import conv2d as reference
from .tools.autograd import apply
from .tools.checks import (
    ArgumentError,
    DtypeError,
    as_integer,
    check_device,
    check_floating,
    check_shape,
    check_tensor,
    integer,
)
from .tools.kept_output import KeptOutput, may_be_changed
from .tools.packed import forget, is_constant, may_keep, packed

__all__ = ["conv2d"]


def output_shape(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    sizes = [
        (input.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    return [input.shape[0], weight.shape[0], *sizes]


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    kind: int,
    alpha: float,
    beta: float,
    save_input_of_activation: bool,
) -> tuple[Tensor, Tensor]:
    shape = output_shape(input, weight, stride, padding, dilation)
    channels_last = is_channels_last(input) or is_channels_last(weight)
    output = empty_image(input, shape, channels_last)
    return output, torch.empty_like(output) if save_input_of_activation else input.new_empty((0,))


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def gradient(of: Tensor, needed: bool) -> Tensor:
        return empty_image(of, of.shape, is_channels_last(of)) if needed else of.new_empty((0,))

    return (
        gradient(input, needs_input),
        gradient(weight, needs_weight),
        weight.new_empty((weight.shape[0],) if needs_bias else (0,)),
        gradient(grad_output, needs_residual),
    )


_GEOMETRY = f"int[] stride, int[] padding, int[] dilation, int groups, {ACTIVATION_SCHEMA}, "

_library.define(
    "conv2d_forward",
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, "
    + _GEOMETRY
    + "bool save_input_of_activation) -> (Tensor output, Tensor saved)",
    _fake_forward,
)
_library.define(
    "conv2d_backward",
    "(Tensor grad_output, Tensor input, Tensor weight, Tensor? saved, "
    + _GEOMETRY
    + "bool saved_is_output, bool needs_input, bool needs_weight, bool needs_bias, bool needs_residual) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    _fake_backward,
)

# Which algorithms the CPU's C++ kernels choose (csrc/cpu/conv2d/algorithms.h), and all of them.
torch.library.define(
    "pyops::conv2d_algorithms",
    "(Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups) -> str[]",
)
torch.library.define("pyops::conv2d_algorithm_names", "() -> str[]")
# The CPU's weights that are packed once (csrc/cpu/conv2d/packed_weights.h).
_WEIGHT = "Tensor input, Tensor weight"
torch.library.define(
    "pyops::conv2d_pack_weight",
    f"({_WEIGHT}, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor",
)
torch.library.define(
    "pyops::conv2d_packed_forward",
    f"({_WEIGHT}, Tensor packed_weight, Tensor? bias, Tensor? residual, "
    + _GEOMETRY
    + "bool unchanged) -> (Tensor output, bool was_read)",
)


class Algorithms(NamedTuple):
    """The names of the algorithms that serve a convolution on the CPU, by direction."""

    forward: str
    input_gradient: str
    weight_gradient: str


def algorithms(
    input: Tensor,
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Algorithms:
    """Which of the CPU's algorithms serve this convolution, without running it.

    ``PYOPS_CONV2D=<name>`` in the environment, read once, forces one wherever its results are right.

    Raises:
        RuntimeError: the C++ kernels for the CPU are not built, or ``PYOPS_CONV2D`` names no algorithm.
    """
    name = "conv2d.algorithms"
    input, weight, _, geometry = prepare(name, input, weight, None, stride, padding, dilation, groups)
    input, weight, _ = for_kernels(input, weight, None)
    _check_library()
    return Algorithms(*torch.ops.pyops.conv2d_algorithms(input, weight, *geometry))


def algorithm_names() -> dict[str, list[str]]:
    """By direction, the CPU's algorithms in the order in which they are asked whether they suit."""
    _check_library()
    names = (all_names.split() for all_names in torch.ops.pyops.conv2d_algorithm_names())
    return dict(zip(Algorithms._fields, names, strict=True))


def _check_library() -> None:
    if "cpp" not in _library.loaded:
        raise RuntimeError(f"conv2d: {_library.load_errors.get('cpp', 'the C++ library is not loaded')}")


class Geometry(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


class Conv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        geometry: Geometry,
        activation: Activation,
        ops: SimpleNamespace,
    ) -> Tensor:
        keeps_output, watched = activation.keeps_output(input.dtype), may_be_changed(activation)
        if watched and residual is not None:  # which is not kept, and of no use if it is changed
            keeps_output = False
        output, saved = ops.conv2d_forward(
            input, weight, bias, residual, *geometry, *activation, not keeps_output
        )
        ctx.channels_last = is_channels_last(output)
        output = no_view(output) if ctx.channels_last else output
        ctx.kept = KeptOutput(output) if keeps_output and watched else None
        if ctx.kept is not None:
            ctx.save_for_backward(input, weight, bias, None, output.data)
        elif keeps_output:
            ctx.save_for_backward(input, weight, None, None, output if activation.kind else None)
        else:
            ctx.save_for_backward(input, weight, bias, residual, saved)
        ctx.geometry, ctx.activation = geometry, activation
        ctx.keeps_output, ctx.ops = keeps_output, ops
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, weight, bias, residual, saved = ctx.saved_tensors
        needs, keeps_output = ctx.needs_input_grad[:4], ctx.keeps_output
        linear = (*ctx.geometry, Activation(IDENTITY))
        if torch.is_grad_enabled():
            keeps_output = keeps_output and ctx.kept is None
            if not keeps_output:  # with the graph that double backward needs
                saved = reference.conv2d(input, weight, bias, residual, *linear)
            options = (*ctx.geometry, ctx.activation, keeps_output, needs)
            grads = reference.conv2d_gradient(grad, input, weight, saved, *options)
            return (*grads, None, None, None)
        if ctx.kept is not None and ctx.kept.was_changed():
            keeps_output = False
            saved = ctx.ops.conv2d_forward(input, weight, bias, None, *linear[:-1], *linear[-1], False)[0]
        options = (*ctx.geometry, *ctx.activation, keeps_output, *needs)
        grads = ctx.ops.conv2d_backward(dense(grad, ctx.channels_last), input, weight, saved, *options)
        return (*(g if n else None for g, n in zip(grads, needs, strict=True)), None, None, None)


def _are_torchs(input: Tensor, weight: Tensor) -> bool:
    """Whether these are integers or complex numbers, of one dtype, which torch's op takes alone."""
    return not input.is_floating_point() and isinstance(weight, Tensor) and weight.dtype == input.dtype


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    r"""activation(conv2d(input, weight) + bias + residual), as :func:`torch.nn.functional.conv2d`.

    Args:
        input: shape (N, C, H, W) or (C, H, W), contiguous or channels_last; other strides are copied.
        weight: shape (K, C / groups, R, S).
        bias: shape (K).
        stride, dilation: a number, or one for each of H and W.
        padding: zeros around the image: a number, one for each of H and W, ``"valid"`` (none) or ``"same"``
            (output of the input's size; stride 1 only).
        groups: the input's and the output's channels are cut into as many groups that do not mix.
        activation: name of the activation that follows, with its default parameters: ``"relu"``,
            ``"leaky_relu"``, ``"sigmoid"``, ``"tanh"``, ``"selu"``, ``"softplus"``, ``"elu"``, ``"gelu"``,
            ``"gelu_tanh"``, ``"silu"``, ``"hardswish"``, ``"relu6"``, ``"hardtanh"`` or ``"hardsigmoid"``.
        residual: added before the activation; the output's shape.

    Returns:
        Tensor of shape (N, K, OH, OW), or (K, OH, OW) for one image, with
        OH = floor((H + 2 padding - dilation (R - 1) - 1) / stride) + 1 and OW alike. It is channels_last
        where the input or the weight is. Its dtype is the arguments' or, under autocast, autocast's.

    Raises:
        TypeError, ValueError: an argument of wrong dtype, shape or value.
        RuntimeError: tensors on different devices.
    """
    name = "conv2d"
    plain = activation is None and residual is None and isinstance(input, Tensor)
    if plain and (backends.prefers_torch(name, input) or _are_torchs(input, weight)):
        return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    function = parse(name, activation)
    check_floating(name, "input", input)
    if input.dim() == 3:
        images, more = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
        options = (bias, stride, padding, dilation, groups)
        return conv2d(images, weight, *options, activation=activation, residual=more)[0]
    if residual is not None:
        _, residual = autocast(input, residual)
    input, weight, bias, geometry = prepare(name, input, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        shape = tuple(output_shape(input, weight, *geometry[:3]))
        check_device(name, "residual", residual, input)
        check_shape(name, "residual", residual, shape, "the output's")
        if residual.dtype is not input.dtype:
            raise DtypeError(
                f"{name}: residual must have the input's dtype {input.dtype}, got {residual.dtype}"
            )
    ops = backends.resolve(input, "conv2d_forward")
    if ops is None:
        return reference.conv2d(input, weight, bias, residual, *geometry, function)
    input, weight, bias = for_kernels(input, weight, bias)
    if residual is not None:
        residual = dense(residual, is_channels_last(input) or is_channels_last(weight))
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (input, weight, bias, residual)
    ):
        return apply(Conv2dFunction, input, weight, bias, residual, geometry, function, ops)
    if ops.backend == "cpp" and may_keep(weight):
        output = _with_packed_weight(input, weight, bias, residual, geometry, function)
        if output is not None:
            return output
    output = ops.conv2d_forward(input, weight, bias, residual, *geometry, *function, False)[0]
    return no_view(output) if is_channels_last(output) else output


def _with_packed_weight(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    function: Activation,
) -> Tensor | None:
    """The output by a weight that was packed in an earlier call; None if there is none."""
    key = (input.shape, input.dtype, is_channels_last(input), *map(tuple, geometry[:3]), geometry.groups)
    kept = packed(weight, key, lambda: torch.ops.pyops.conv2d_pack_weight(input, weight, *geometry))
    if kept is None:
        return None
    call = torch.ops.pyops.conv2d_packed_forward.default
    unchanged = is_constant(weight)
    output, was_read = call(input, weight, kept, bias, residual, *geometry, *function, unchanged)
    if not was_read:
        forget(weight)
    return no_view(output) if is_channels_last(output) else output


def prepare(
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor | None, Geometry]:
    """The tensors in the dtype that autocast asks for and the geometry, all of it checked.

    The input has one more row or column where ``padding="same"`` is uneven.
    """
    check_tensor(name, "weight", weight)
    input, weight, bias = autocast(input, weight, bias)
    _check_tensors(name, input, weight, bias, groups)
    strides, dilations = _pair(name, "stride", stride, 1), _pair(name, "dilation", dilation, 1)
    if isinstance(padding, str):
        input, paddings = _named_padding(name, padding, input, weight, strides, dilations)
    else:
        paddings = _pair(name, "padding", padding, 0)
    geometry = Geometry(strides, paddings, dilations, groups)
    _check_kernel_fits(name, input, weight, geometry)
    return input, weight, bias, geometry


def for_kernels(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors as the raw ops take them: dense in one of the two formats, the bias contiguous."""
    images = dense_in_either_format(input), dense_in_either_format(weight)
    return (*images, None if bias is None else bias.contiguous())


def _pair(function: str, name: str, value: int | Sequence[int], least: int) -> list[int]:
    """``value`` for both dimensions."""
    single: Any = as_integer(value)
    values = (single, single) if single is not None else value
    if not isinstance(values, Iterable):
        raise ArgumentError(f"{function}: {name} must be a number or two, got {value!r}")
    pair: list[Any] = [as_integer(v) for v in values]
    if len(pair) == 1:
        pair = pair * 2
    if len(pair) != 2 or None in pair:
        raise ArgumentError(f"{function}: {name} must be a number or two, got {value!r}")
    if pair[0] < least or pair[1] < least:
        raise ArgumentError(f"{function}: {name} must be at least {least}, got {value!r}")
    return pair


def _check_tensors(name: str, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    check_device(name, "weight", weight, input)
    if input.dim() != 4:
        raise ArgumentError(
            f"{name}: Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: "
            f"{list(input.shape)}"
        )
    if weight.dim() != 4:
        raise ArgumentError(
            f"{name}: weight must have shape (K, C / groups, R, S), got {tuple(weight.shape)}"
        )
    if weight.dtype is not input.dtype:
        raise DtypeError(f"{name}: weight must have the input's dtype {input.dtype}, got {weight.dtype}")
    if integer(name, "groups", groups) < 1:
        raise ArgumentError(f"{name}: groups must be at least 1, got {groups}")
    if weight.shape[0] == 0 or weight.shape[0] % groups:
        raise ArgumentError(
            f"{name}: groups must divide the weight's {weight.shape[0]} output channels, got {groups}"
        )
    if weight.shape[1] == 0 or input.shape[1] != weight.shape[1] * groups:
        raise ArgumentError(
            f"{name}: the weight has {weight.shape[1]} channels and groups is {groups}, "
            f"so input must have {weight.shape[1] * groups} channels, got shape {tuple(input.shape)}"
        )
    if bias is not None:
        check_device(name, "bias", bias, input)
        check_shape(name, "bias", bias, (weight.shape[0],), "one per output channel")
        if bias.dtype is not input.dtype:
            raise DtypeError(f"{name}: bias must have the input's dtype {input.dtype}, got {bias.dtype}")


def _named_padding(
    name: str, padding: str, input: Tensor, weight: Tensor, stride: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """The padding called ``"same"`` or ``"valid"``; the input with one more row or column where it is odd."""
    if padding == "valid":
        return input, [0, 0]
    if padding != "same":
        raise ArgumentError(f"{name}: padding must be 'same', 'valid' or numbers, got {padding!r}")
    if stride != [1, 1]:
        raise ArgumentError(f"{name}: padding='same' needs stride 1, got {stride}")
    total = [dilation[i] * (weight.shape[2 + i] - 1) for i in range(2)]
    odd = [t % 2 for t in total]
    if any(odd):  # as torch: the extra one comes last
        input = torch.nn.functional.pad(input, (0, odd[1], 0, odd[0]))
    return input, [t // 2 for t in total]


def _check_kernel_fits(name: str, input: Tensor, weight: Tensor, geometry: Geometry) -> None:
    for i, side in enumerate(("height", "width")):
        extent = geometry.dilation[i] * (weight.shape[2 + i] - 1) + 1
        padded = input.shape[2 + i] + 2 * geometry.padding[i]
        if weight.shape[2 + i] == 0 or extent > padded:
            raise ArgumentError(
                f"{name}: the kernel's {side} is {weight.shape[2 + i]}, {extent} with its dilation, and must "
                f"be at least 1 and at most the padded input's {padded} (input {input.shape[2 + i]}, "
                f"padding {geometry.padding[i]})"
            )
