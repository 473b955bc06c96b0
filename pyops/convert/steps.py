"""What a fused group of ops runs: a call of one kernel, on the parameters as they are at that moment.

A step is made of the ops of its group, with None for each optional one that is missing. It is called with
the group's input and, where the group adds one, the residual. What the kernel does not take is computed op by
op.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch.nn
from torch import Tensor

from .. import functional as F
from ..nn.batch_norm import normalize
from ..nn.conv2d import convolve
from ..nn.layer_norm import group_normalize, layer_normalize
from ..ops.tools.digest import digest_of
from ..ops.tools.packed import constant
from .ops import Member, Op, activation_name

Parts = tuple[Op | None, ...]


class Step:
    """The base class: the group's activation, and how to compute the group op by op."""

    #: The ops of the group, in their order.
    members: tuple[Member, ...] = ()

    def __init__(self, *ops: Op | None) -> None:
        modules: list[Any] = [op.module for op in ops if op is not None and op.kind == "activation"]
        self.activation = activation_name(modules[0]) if modules else None

    @staticmethod
    def problem(*ops: Op | None) -> str | None:
        """Why these ops cannot be fused although they are next to each other, or None."""
        return None

    def _activate(self, x: Tensor) -> Tensor:
        return x if self.activation is None else _FUNCTIONS[self.activation](x)

    def _then(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self._activate(x if residual is None else x + residual)

    def _in_one_dtype(self, input: Tensor, residual: Tensor | None) -> bool:
        """Whether each op by itself would compute in the dtype that the kernel computes in."""
        dtype, device = input.dtype, input.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            if self.activation == "softplus":  # autocast computes it in float32
                return False
            dtype = torch.get_autocast_dtype(device)
        return residual is None or residual.dtype is dtype


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "selu": F.selu,
    "softplus": F.softplus,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, "tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
}


def _output_shape(conv: torch.nn.Conv1d | torch.nn.Conv2d, input: Tensor) -> tuple[int, ...]:
    around = conv._reversed_padding_repeated_twice  # left, right, top, bottom, also of a named padding
    sides = len(conv.kernel_size)
    padded = [input.shape[-1 - i] + around[2 * i] + around[2 * i + 1] for i in reversed(range(sides))]
    size = [
        (padded[i] - conv.dilation[i] * (conv.kernel_size[i] - 1) - 1) // conv.stride[i] + 1
        for i in range(sides)
    ]
    return (*input.shape[: -1 - sides], conv.out_channels, *size)


class Conv2dStep(Step):
    """conv2d, add, activation."""

    def __init__(self, conv: Op, add: Op | None, activation: Op | None) -> None:
        super().__init__(activation)
        self.conv: Any = conv.module

    def __call__(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        conv = self.conv
        weight, bias = conv.weight, conv.bias
        if self._in_one_dtype(input, residual) and (
            residual is None or residual.shape == _output_shape(conv, input)
        ):
            return convolve(conv, input, weight, bias, self.activation, residual)
        return self._then(convolve(conv, input, weight, bias), residual)


class Conv1dStep(Conv2dStep):
    """conv1d, add, activation."""


def _conv2d_max_pool2d(
    conv: Any, pool: Any, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    return F.conv2d_max_pool2d(
        input,
        weight,
        bias,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        activation=activation,
        kernel_size=pool.kernel_size,
        pool_stride=pool.stride,
        pool_padding=pool.padding,
        pool_dilation=pool.dilation,
        ceil_mode=pool.ceil_mode,
    )


def _padding_problem(conv: Any) -> str | None:
    if conv.padding_mode != "zeros":
        return f"conv2d_max_pool2d pads with zeros, not by {conv.padding_mode!r}"
    return None


class Conv2dMaxPool2dStep(Step):
    """conv2d, activation, max_pool2d."""

    def __init__(self, conv: Op, activation: Op | None, pool: Op) -> None:
        super().__init__(activation)
        self.conv: Any = conv.module
        self.pool: Any = pool.module

    @staticmethod
    def problem(*ops: Op | None) -> str | None:
        return _padding_problem(ops[0].module) if ops[0] else None

    def __call__(self, input: Tensor) -> Tensor:
        conv, pool = self.conv, self.pool
        if not self._in_one_dtype(input, None) or conv.padding_mode != "zeros":  # it may be set later
            return pool(self._activate(convolve(conv, input, conv.weight, conv.bias)))
        return _conv2d_max_pool2d(conv, pool, input, conv.weight, conv.bias, self.activation)


class LinearStep(Step):
    """linear, activation, dropout."""

    def __init__(self, linear: Op, activation: Op | None, dropout: Op | None) -> None:
        super().__init__(activation)
        self.linear: Any = linear.module
        self.dropout: Any = None if dropout is None else dropout.module

    def __call__(self, input: Tensor) -> Tensor:
        linear, dropout = self.linear, self.dropout
        weight, bias = linear.weight, linear.bias
        p = dropout.p if dropout is not None and dropout.training else 0.0
        if self._in_one_dtype(input, None):
            return F.linear(input, weight, bias, activation=self.activation, dropout_p=p)
        return F.dropout(self._activate(F.linear(input, weight, bias)), p)


class BatchNormStep(Step):
    """batch_norm, add, activation."""

    def __init__(self, norm: Op, add: Op | None, activation: Op | None) -> None:
        super().__init__(activation)
        self.norm: Any = norm.module

    def __call__(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._normalize(self.norm, input, residual)

    def _normalize(self, norm: Any, input: Tensor, residual: Tensor | None) -> Tensor:
        # Autocast leaves batch_norm in its input's dtype.
        if residual is None or (residual.shape == input.shape and residual.dtype is input.dtype):
            return normalize(norm, input, self.activation, residual)
        return self._then(normalize(norm, input, None, None), residual)


class RowNormStep(Step):
    """Layer or group normalisation, activation."""

    def __init__(self, norm: Op, activation: Op | None) -> None:
        super().__init__(activation)
        self.norm: Any = norm.module

    def __call__(self, input: Tensor) -> Tensor:
        norm = self.norm
        normalize_rows = group_normalize if isinstance(norm, torch.nn.GroupNorm) else layer_normalize
        if self._in_one_dtype(input, None):
            return normalize_rows(norm, input, self.activation)
        return self._activate(normalize_rows(norm, input))


class Conv2dBatchNormStep(BatchNormStep):
    """conv2d, batch_norm, add, activation. In evaluation the normalisation is folded into the weights."""

    #: Of what it is a normalisation, and the classes that do it.
    of = "image"
    norms: tuple[type, ...] = (torch.nn.BatchNorm2d, torch.nn.LazyBatchNorm2d)

    def __init__(self, conv: Op, norm: Op, add: Op | None, activation: Op | None) -> None:
        super().__init__(norm, add, activation)
        self.conv: Any = conv.module
        self._folded: _Folded | None = None

    def __call__(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        conv, norm = self.conv, self.norm
        if not self._foldable(input, residual):
            return self._normalize(norm, convolve(conv, input, conv.weight, conv.bias), residual)
        return convolve(conv, input, *self._fold(), self.activation, residual)

    def _fold(self) -> tuple[Tensor, Tensor]:
        """The folded weight and bias, as they are now."""
        conv, norm = self.conv, self.norm
        if torch.compiler.is_compiling():
            return _fold(conv, norm)
        if self._folded is None or not self._folded.holds(conv, norm):
            self._folded = _Folded(conv, norm)
        return self._folded.result

    @classmethod
    def problem(cls, *ops: Op | None) -> str | None:
        norm: Any = ops[1].module if ops[1] else None
        return None if isinstance(norm, cls.norms) else f"batch_norm is not that of an {cls.of}"

    def _foldable(self, input: Tensor, residual: Tensor | None) -> bool:
        conv, norm = self.conv, self.norm
        return (
            not norm.training
            and norm.running_mean is not None
            and input.dim() == len(conv.kernel_size) + 2
            and norm.num_features == conv.out_channels
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in _sources(conv, norm)))
            and self._in_one_dtype(input, residual)
            and (residual is None or residual.shape == _output_shape(conv, input))
        )


class Conv1dBatchNormStep(Conv2dBatchNormStep):
    """conv1d, batch_norm, add, activation."""

    of = "array of rows"
    norms = (torch.nn.BatchNorm1d, torch.nn.LazyBatchNorm1d)


class Conv2dBatchNormMaxPool2dStep(Conv2dBatchNormStep):
    """conv2d, batch_norm, activation, max_pool2d: one kernel where the normalisation is folded."""

    def __init__(self, conv: Op, norm: Op, activation: Op | None, pool: Op) -> None:
        super().__init__(conv, norm, None, activation)
        self.pool: Any = pool.module

    @classmethod
    def problem(cls, *ops: Op | None) -> str | None:
        padding = _padding_problem(ops[0].module) if ops[0] else None
        return padding or super().problem(*ops)

    def __call__(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self._foldable(input, residual) or self.conv.padding_mode != "zeros":
            return self.pool(super().__call__(input, residual))
        return _conv2d_max_pool2d(self.conv, self.pool, input, *self._fold(), self.activation)


def _sources(conv: Any, norm: Any) -> list[Tensor]:
    """The tensors that folded weights depend on."""
    tensors = (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return [tensor for tensor in tensors if tensor is not None]


def _fold(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that is ``norm(conv(x))`` in evaluation mode."""
    weight = conv.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = shift * scale if norm.bias is None else shift * scale + norm.bias
    return (weight * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype), bias.to(weight.dtype)


class _Folded:
    """A folded weight and bias, and what they were made of."""

    def __init__(self, conv: Any, norm: Any) -> None:
        # No tensors of inference mode: a later call may need the gradient of its input.
        with torch.inference_mode(False), torch.no_grad():
            weight, bias = _fold(conv, norm)
            # What does not change may be packed once (ops/tools/packed.py), as this says.
            self.result = constant(weight), bias
        # References, so that no other tensor can get the identity of one of these.
        self._sources, self._eps = _sources(conv, norm), norm.eps
        self._digest = digest_of(self._sources)

    def holds(self, conv: Any, norm: Any) -> bool:
        """Whether folding again would give the same. On a GPU that is not known: it folds at each call."""
        sources = _sources(conv, norm)
        return (
            self._digest is not None
            and norm.eps == self._eps
            and len(sources) == len(self._sources)
            and all(map(operator.is_, sources, self._sources))
            and digest_of(sources) == self._digest
        )
