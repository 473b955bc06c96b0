"""Two-dimensional convolution with bias, residual and activation: schemas, autograd and public function.

Kernels: ``conv2d/`` in ``csrc/cpu``, ``csrc/cuda`` and ``triton_kernels``; the geometry is in
``csrc/math/conv2d.h``. A backend without a kernel for it uses the reference formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _library, backends
from ..kinds import ACTIVATION_SCHEMA, IDENTITY, Activation, parse
from ..layouts import dense, dense_in_either_format, empty_image, is_channels_last, no_view
from ..reference import conv2d as reference
from .tools.autograd import apply
from .tools.checks import check_floating
from .tools.convolution import Geometry, are_torchs, checked_residual, output_shape, prepare
from .tools.kept_output import KeptOutput, may_be_changed
from .tools.packed import forget, is_constant, may_keep, packed

__all__ = ["conv2d"]


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


class Conv2dFunction(torch.autograd.Function):
    """The convolution of images, or of rows [N, C, L] with weights [K, C / groups, R], as images of height 1.

    The geometry is that of the images. A row's output is no view, as those of :func:`convolve` are not.
    """

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
        images = (as_image(input), as_image(weight), bias, as_image(residual))
        output, saved = ops.conv2d_forward(*images, *geometry, *activation, not keeps_output)
        ctx.channels_last = is_channels_last(output)
        output = _result(output, input)
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
        input, weight, bias, *rest = ctx.saved_tensors
        input, weight, residual, saved = map(as_image, (input, weight, *rest))
        of_rows, grad = grad.dim() == 3, as_image(grad)
        needs, keeps_output = ctx.needs_input_grad[:4], ctx.keeps_output
        linear = (*ctx.geometry, Activation(IDENTITY))
        if torch.is_grad_enabled():
            keeps_output = keeps_output and ctx.kept is None
            if not keeps_output:  # with the graph that double backward needs
                saved = reference.conv2d(input, weight, bias, residual, *linear)
            options = (*ctx.geometry, ctx.activation, keeps_output, needs)
            grads = reference.conv2d_gradient(grad, input, weight, saved, *options)
            return (*_as_arguments(grads, of_rows), None, None, None)
        if ctx.kept is not None and ctx.kept.was_changed():
            keeps_output = False
            saved = ctx.ops.conv2d_forward(input, weight, bias, None, *linear[:-1], *linear[-1], False)[0]
        options = (*ctx.geometry, *ctx.activation, keeps_output, *needs)
        grads = ctx.ops.conv2d_backward(dense(grad, ctx.channels_last), input, weight, saved, *options)
        wanted = [g if n else None for g, n in zip(grads, needs, strict=True)]
        return (*_as_arguments(wanted, of_rows), None, None, None)


def as_image(row: Any) -> Any:
    """A tensor [N, C, L] as one of images of height 1, a view; an image and None as they are."""
    return row.unsqueeze(2) if row is not None and row.dim() == 3 else row


def _result(output: Tensor, input: Tensor) -> Tensor:
    """A kernel's output in the dimensions of ``input``, and no view for autograd."""
    if input.dim() == 3:
        return no_view(output.squeeze(2))
    return no_view(output) if is_channels_last(output) else output


def _as_arguments(gradients: Sequence[Tensor | None], of_rows: bool) -> Sequence[Tensor | None]:
    """The gradients of images, weight, bias and residual in the arguments' dimensions."""
    if not of_rows:
        return gradients
    return [g if g is None or g.dim() == 1 else g.squeeze(2) for g in gradients]


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
    if plain and (backends.prefers_torch(name, input) or are_torchs(input, weight)):
        return torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    function = parse(name, activation)
    check_floating(name, "input", input)
    if input.dim() == 3:
        images, more = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
        options = (bias, stride, padding, dilation, groups)
        return conv2d(images, weight, *options, activation=activation, residual=more)[0]
    input, weight, bias, geometry = prepare(name, input, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        residual = checked_residual(name, residual, input, weight, geometry)
    return convolve(input, weight, bias, residual, geometry, function)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    function: Activation,
) -> Tensor:
    """The convolution of checked arguments: of images, or of rows as :class:`Conv2dFunction` takes them."""
    ops = backends.resolve(input, "conv2d_forward")
    if ops is None:
        tensors = (as_image(input), as_image(weight), bias, as_image(residual))
        found = reference.conv2d(*tensors, *geometry, function)
        return found.squeeze(2) if input.dim() == 3 else found
    input, weight, bias = for_kernels(input, weight, bias)
    if residual is not None:
        last = is_channels_last(as_image(input)) or is_channels_last(as_image(weight))
        residual = dense(as_image(residual), last)
        residual = residual.squeeze(2) if input.dim() == 3 else residual
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (input, weight, bias, residual)
    ):
        return apply(Conv2dFunction, input, weight, bias, residual, geometry, function, ops)
    if ops.backend == "cpp" and may_keep(weight):
        output = _with_packed_weight(input, weight, bias, residual, geometry, function)
        if output is not None:
            return output
    images = (as_image(input), as_image(weight), bias, as_image(residual))
    return _result(ops.conv2d_forward(*images, *geometry, *function, False)[0], input)


def _with_packed_weight(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    function: Activation,
) -> Tensor | None:
    """The output by a weight that was packed in an earlier call; None if there is none."""
    image, kernels = as_image(input), as_image(weight)
    key = (image.shape, image.dtype, is_channels_last(image), *map(tuple, geometry[:3]), geometry.groups)
    kept = packed(weight, key, lambda: torch.ops.pyops.conv2d_pack_weight(image, kernels, *geometry))
    if kept is None:
        return None
    call = torch.ops.pyops.conv2d_packed_forward.default
    unchanged = is_constant(weight)
    tensors = (image, kernels, kept, bias, as_image(residual))
    output, was_read = call(*tensors, *geometry, *function, unchanged)
    if not was_read:
        forget(weight)
    return _result(output, input)


def for_kernels(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors as the raw ops take them: dense in one of the two formats, the bias contiguous.

    As in torch, only the weight of rows may lie as one of channels_last images.
    """
    if input.dim() == 3:
        input, kernels = input.contiguous(), as_image(weight)
        weight = weight if dense_in_either_format(kernels) is kernels else weight.contiguous()
    else:
        input, weight = dense_in_either_format(input), dense_in_either_format(weight)
    return input, weight, None if bias is None else bias.contiguous()
