"""Activations and their derivatives; formulas as in csrc/math/activation.h."""

import triton
import triton.language as tl

from pyops.kinds import Activation

from .math import divide, exp, expm1, log1p, logistic, normal_distribution, tanh

# The kinds' numbers: those of pyops/kinds.py.
IDENTITY: tl.constexpr = tl.constexpr(0)
RELU: tl.constexpr = tl.constexpr(1)
LEAKY_RELU: tl.constexpr = tl.constexpr(2)
SIGMOID: tl.constexpr = tl.constexpr(3)
TANH: tl.constexpr = tl.constexpr(4)
SELU: tl.constexpr = tl.constexpr(5)
SOFTPLUS: tl.constexpr = tl.constexpr(6)
ELU: tl.constexpr = tl.constexpr(7)
GELU: tl.constexpr = tl.constexpr(8)
GELU_TANH: tl.constexpr = tl.constexpr(9)
SILU: tl.constexpr = tl.constexpr(10)
HARDSWISH: tl.constexpr = tl.constexpr(11)
HARDTANH: tl.constexpr = tl.constexpr(12)
HARDSIGMOID: tl.constexpr = tl.constexpr(13)

# Applied to a matrix product's tile. Others, of many steps, would spill its registers: they take a pass.
CHEAP = (IDENTITY.value, RELU.value, LEAKY_RELU.value, HARDTANH.value)

_SELU_SCALE: tl.constexpr = tl.constexpr(1.0507009873554804934193349852946)
_SELU_SATURATION: tl.constexpr = tl.constexpr(
    1.6732632423543772848170429916717 * 1.0507009873554804934193349852946
)
_TWO_SQRT_2_OVER_PI: tl.constexpr = tl.constexpr(1.5957691216057307117)
_GELU_CUBIC: tl.constexpr = tl.constexpr(0.044715)


NO_ACTIVATION = Activation(IDENTITY.value)


def check_activation(activation: Activation, op: str, saved_is_output: bool = False) -> None:
    """Raise RuntimeError for a kind that does not exist, or whose derivative is no formula of the output."""
    kind = activation.kind
    if not 0 <= kind <= 13:
        raise RuntimeError(f"{op}: kind must be in [0, 13], got {kind}")
    if saved_is_output and not activation.from_output:
        raise RuntimeError(f"{op}: the derivative of kind {kind} needs the input, not the output")


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, storage: tl.constexpr):
    """The activation of x, which is float32 or float64; results are to be stored as ``storage``."""
    KIND: tl.constexpr = ACTIVATION.kind
    ALPHA: tl.constexpr = ACTIVATION.alpha
    if KIND == IDENTITY:
        return x
    elif KIND == RELU:
        return tl.where(x < 0.0, 0.0, x)
    elif KIND == LEAKY_RELU:
        return tl.where(x > 0.0, x, x * ALPHA)
    elif KIND == SIGMOID:
        return logistic(x, storage)
    elif KIND == TANH:
        return tanh(x)
    elif KIND == SELU:
        return tl.where(x < 0.0, expm1(x) * _SELU_SATURATION, x * _SELU_SCALE)
    elif KIND == SOFTPLUS:
        t = x * ALPHA
        smooth = tl.where(t > 0.0, t, 0.0) + log1p(exp(-tl.abs(t), storage))
        smooth = divide(smooth, tl.zeros_like(x) + ALPHA)
        return tl.where(t > ACTIVATION.beta, x, smooth)
    elif KIND == ELU:
        return tl.where(x < 0.0, expm1(x) * ALPHA, x)
    elif KIND == GELU:
        cdf, _exponential = normal_distribution(x, storage)
        return x * cdf
    elif KIND == GELU_TANH:
        return x * logistic(x * (x * x * _GELU_CUBIC + 1.0) * _TWO_SQRT_2_OVER_PI, storage)
    elif KIND == SILU:
        return divide(x, exp(-x, storage) + 1.0)
    elif KIND == HARDTANH:
        return _clamp(x, ALPHA, ACTIVATION.beta)
    elif KIND == HARDSIGMOID:
        return divide(_clamp(x + 3.0, 0.0, 6.0), tl.zeros_like(x) + 6.0)
    else:
        tl.static_assert(KIND == HARDSWISH)
        return divide(x * _clamp(x + 3.0, 0.0, 6.0), tl.zeros_like(x) + 6.0)


@triton.jit
def _clamp(x, LEAST: tl.constexpr, GREATEST: tl.constexpr):
    # A number by itself would be one of float32.
    least, greatest = tl.zeros_like(x) + LEAST, tl.zeros_like(x) + GREATEST
    above = tl.where(x < least, least, x)
    return tl.where(above > greatest, greatest, above)


@triton.jit
def derive_from_output(y, grad, ACTIVATION: tl.constexpr):
    """Gradient of the input, from the output and the upstream gradient."""
    KIND: tl.constexpr = ACTIVATION.kind
    ALPHA: tl.constexpr = ACTIVATION.alpha
    if KIND == IDENTITY:
        return grad
    elif KIND == RELU:
        return tl.where(y <= 0.0, 0.0, grad)
    elif KIND == LEAKY_RELU:
        return tl.where(y > 0.0, grad, grad * ALPHA)
    elif KIND == SIGMOID:
        return grad * (1.0 - y) * y
    elif KIND == TANH:
        return grad * (1.0 - y * y)
    elif KIND == SELU:
        return tl.where(y <= 0.0, grad * (y + _SELU_SATURATION), grad * _SELU_SCALE)
    elif KIND == HARDTANH:
        least, greatest = tl.zeros_like(y) + ALPHA, tl.zeros_like(y) + ACTIVATION.beta
        return tl.where(y <= least, 0.0, tl.where(y >= greatest, 0.0, grad))
    else:
        tl.static_assert(KIND == ELU)
        return tl.where(y <= 0.0, grad * (y + ALPHA), grad)


@triton.jit
def derive_from_input(x, grad, ACTIVATION: tl.constexpr, storage: tl.constexpr):
    """Gradient of the input, from the input and the upstream gradient."""
    KIND: tl.constexpr = ACTIVATION.kind
    ALPHA: tl.constexpr = ACTIVATION.alpha
    if KIND == LEAKY_RELU:
        return tl.where(x > 0.0, grad, grad * ALPHA)
    elif KIND == ELU:
        return tl.where(x <= 0.0, grad * (exp(x, storage) * ALPHA), grad)
    elif KIND == SOFTPLUS:
        t = x * ALPHA
        return tl.where(t > ACTIVATION.beta, grad, grad * logistic(t, storage))
    elif KIND == GELU:
        cdf, exponential = normal_distribution(x, storage)
        return grad * (cdf + x * (exponential * 0.39894228040143267794))
    elif KIND == GELU_TANH:
        square = x * x
        s = logistic(x * (square * _GELU_CUBIC + 1.0) * _TWO_SQRT_2_OVER_PI, storage)
        slope = (square * (3.0 * _GELU_CUBIC) + 1.0) * _TWO_SQRT_2_OVER_PI
        return grad * (s + x * (s * (1.0 - s)) * slope)
    elif KIND == SILU:
        s = logistic(x, storage)
        return grad * s * (x * (1.0 - s) + 1.0)
    elif KIND == HARDSWISH:
        inside = grad * (divide(x, tl.zeros_like(x) + 3.0) + 0.5)
        return tl.where(x <= -3.0, 0.0, tl.where(x < 3.0, inside, grad))
    elif KIND == HARDSIGMOID:
        slope = divide(grad, tl.zeros_like(x) + 6.0)
        return tl.where(x > -3.0, tl.where(x < 3.0, slope, 0.0), 0.0)
    else:
        return derive_from_output(activate(x, ACTIVATION, storage), grad, ACTIVATION)
