"""The activations for the shared suite: formulas in float64, smoke cases, raw arguments, mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import CPP, THOROUGH, TRITON
from ..cases import Case, Op, normal
from ..contract import FLOAT, Contract, over
from ..cuda_code import PACKS
from ..mutants import Mutant
from ..triton_cases import BF16, F32, F64, meta


def relu(input: Tensor) -> Tensor:
    return torch.where(input > 0, input, torch.zeros_like(input))


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return torch.where(input > 0, input, input * negative_slope)


def sigmoid(input: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-input))


def tanh(input: Tensor) -> Tensor:
    return -torch.expm1(-2 * input) / (1 + torch.exp(-2 * input))


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(input > 0, input, alpha * torch.expm1(input.clamp(max=0)))


def selu(input: Tensor) -> Tensor:
    return 1.0507009873554804934193349852946 * elu(input, 1.6732632423543772848170429916717)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    smooth = torch.logaddexp(input * beta, torch.zeros_like(input)) / beta
    return torch.where(input * beta > threshold, input, smooth)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return input * torch.special.erfc(-input / 2**0.5) / 2
    return input * sigmoid(2 * (2 / torch.pi) ** 0.5 * (input + 0.044715 * input**3))


def silu(input: Tensor) -> Tensor:
    return input * sigmoid(input)


def hardswish(input: Tensor) -> Tensor:
    return input * (input + 3).clamp(0, 6) / 6


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return torch.where(input < min_val, min_val, torch.where(input > max_val, max_val, input))


def relu6(input: Tensor) -> Tensor:
    return hardtanh(input, 0.0, 6.0)


def hardsigmoid(input: Tensor) -> Tensor:
    return hardtanh(input + 3, 0.0, 6.0) / 6


_SMOOTH = (sigmoid, tanh, selu, softplus, elu, gelu, silu)
FORMULAS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (relu, leaky_relu, *_SMOOTH, hardswish, relu6, hardtanh, hardsigmoid)
}
OPS = {
    name: Op(getattr(F, name), getattr(torch.nn.functional, name), formula, ("input",))
    for name, formula in FORMULAS.items()
}

#: Each function with its options: every kind, and parameters that change what is saved for backward.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FORMULAS},
    "leaky_relu_0.2": ("leaky_relu", {"negative_slope": 0.2}),
    "leaky_relu_negative": ("leaky_relu", {"negative_slope": -0.3}),
    "softplus_2_1": ("softplus", {"beta": 2.0, "threshold": 1.0}),
    "elu_0.5": ("elu", {"alpha": 0.5}),
    "elu_negative": ("elu", {"alpha": -0.5}),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}),
    "hardtanh_-0.3_2.7": ("hardtanh", {"min_val": -0.3, "max_val": 2.7}),
}


def case(variant: str, shape: tuple[int, ...], *, quick: bool = True, scale: float = 3.0) -> Case:
    op, options = VARIANTS[variant]
    id = f"{variant}_{'x'.join(map(str, shape)) or 'scalar'}"
    return Case(id, op, lambda g: {"input": normal(g, shape, scale)}, options, quick)


# 8 x 3 full vectors of 16 lanes and more, and an end inside a vector.
SMOKE = [case(variant, (9, 43)) for variant in VARIANTS]


_SHAPES = [
    case(v, s) for v in ("relu", "softplus") for s in [(), (0,), (2, 0, 3), (1,), (1031,), (1, 2, 3, 4)]
]
_LARGE = [case(v, (3, 65_537), quick=False) for v in VARIANTS]
_LAYOUTS = [case(v, s) for v in ("relu", "gelu") for s in [(6, 7), (2, 5, 3, 4)]]
SMALL = [case(v, (4, 7)) for v in ("relu", "softplus_2_1")]
_ROW = torch.zeros(3, 5)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_SHAPES, FLOAT) + over(_LARGE, [torch.float32, torch.float16], [CPP]),
    strided_input=over(_LAYOUTS),
    strided_upstream=over(_LAYOUTS[::2] + [c.in_layout("transposed") for c in _LAYOUTS[::2]]),
    gradcheck=over([case(v, (3, 5)) for v in VARIANTS], backends=[CPP, TRITON]),
    opcheck=over(SMALL, FLOAT),
    compile=over([case(v, (4, 7)) for v in VARIANTS], FLOAT, [CPP]),
    same_bits=over([case(v, (7, 40_009), quick=False) for v in ("relu", "gelu")], backends=[CPP]),
    autocast=over([case(v, (4, 7)) for v in FORMULAS], backends=THOROUGH),
    meta=over([case(v, (4, 7)) for v in FORMULAS]),
    raw_op_refuses=[
        ("activation_forward", (_ROW, 14, 0.0, 0.0)),
        ("activation_forward", (_ROW, -1, 0.0, 0.0)),
        ("activation_forward", (_ROW[:, ::2], 1, 0.0, 0.0)),
        ("activation_forward", (_ROW.expand(2, 3, 5), 1, 0.0, 0.0)),
        ("activation_forward", (_ROW.long(), 1, 0.0, 0.0)),
        ("activation_forward_", (_ROW[:, ::2], 1, 0.0, 0.0)),
        ("activation_forward_", (_ROW.bool(), 1, 0.0, 0.0)),
        ("activation_backward", (_ROW, _ROW, 14, 0.0, 0.0, True)),
        ("activation_backward", (_ROW, _ROW, 6, 1.0, 20.0, True)),
        ("activation_backward", (_ROW, _ROW, 2, -1.0, 0.0, True)),
        ("activation_backward", (_ROW, _ROW, 13, 0.0, 0.0, True)),
        ("activation_backward", (_ROW[:2], _ROW, 1, 0.0, 0.0, True)),
        ("activation_backward", (_ROW.double(), _ROW, 1, 0.0, 0.0, True)),
        ("activation_backward", (_ROW.view(5, 3).t(), _ROW, 1, 0.0, 0.0, True)),
        ("activation_backward", (_ROW, _ROW.view(5, 3).t(), 1, 0.0, 0.0, True)),
    ],
)


LAYERS = {
    "ReLU": [{}],
    "LeakyReLU": [{}, {"negative_slope": 0.2}],
    "Sigmoid": [{}],
    "Tanh": [{}],
    "SELU": [{}],
    "ELU": [{}, {"alpha": 0.5}],
    "Softplus": [{}, {"beta": 2.0, "threshold": 1.0}],
    "GELU": [{}, {"approximate": "tanh"}],
    "SiLU": [{}],
    "Hardswish": [{}],
    "ReLU6": [{}],
    "Hardtanh": [{}, {"min_val": -0.3, "max_val": 2.7}],
    "Hardsigmoid": [{}],
}


def valid_arguments() -> dict[str, tuple]:
    x = torch.randn(3, 5)
    return {
        "activation_forward": (x, 6, 1.0, 20.0),
        "activation_forward_": (x.clone(), 7, 1.0, 0.0),
        "activation_backward": (x, x, 2, 0.1, 0.0, True),
    }


CUDA_CODE = {"activation": [PACKS]}


def _triton(shape: tuple[int, ...], dtype: torch.dtype, *kinds: tuple[int, float, float, bool]) -> None:
    from pyops.triton_kernels import activation

    x = meta(*shape, dtype=dtype)
    for kind, a, b, saved_is_output in kinds:
        activation.activation_forward(x, kind, a, b)
        activation.activation_backward(x, x, kind, a, b, saved_is_output)


TRITON_CASES = {
    "activation-float32": lambda: _triton(
        (2048, 2048),
        F32,
        (1, 0.0, 0.0, True),
        (4, 0.0, 0.0, True),
        (6, 1.0, 20.0, False),
        (8, 0.0, 0.0, False),
    ),
    "activation-bfloat16": lambda: _triton(
        (2048, 2048),
        BF16,
        (3, 0.0, 0.0, True),
        (5, 0.0, 0.0, False),
        (9, 0.0, 0.0, False),
        (12, 0.0, 6.0, True),
    ),
    "activation-odd-float64": lambda: _triton(
        (1001, 7),
        F64,
        (4, 0.0, 0.0, True),
        (6, 2.0, 20.0, False),
        (8, 0.0, 0.0, False),
        (13, 0.0, 0.0, False),
    ),
}


MUTANTS = {
    "relu_gradient_is_not_masked": Mutant(
        "math/activation.h",
        "return select_at_most(y, V(T(0)), V(T(0)), grad);",
        "return select_at_most(y, V(T(0)), grad, grad);",
        ("epilogue/activation",),
    ),
    "elu_gradient_adds_one_instead_of_alpha": Mutant(
        "math/activation.h", "saved + V(saturation)", "saved + V(T(1))", ("epilogue/activation",)
    ),
    "gelu_gradient_forgets_the_density": Mutant(
        "math/activation.h",
        "grad * (normal.cdf + x *",
        "grad * (normal.cdf + V(T(0)) *",
        ("epilogue/activation",),
    ),
    "hardtanh_gradient_passes_at_its_upper_end": Mutant(
        "math/activation.h",
        "return select_at_most(V(greatest), y, V(T(0)), above);",
        "return select_greater(y, V(greatest), V(T(0)), above);",
        ("epilogue/activation",),
    ),
    "hardsigmoid_gradient_ends_on_one_side_only": Mutant(
        "math/activation.h",
        "return select_greater(x, V(T(-3)), below, V(T(0)));",
        "return below;",
        ("epilogue/activation",),
    ),
    "elementwise_loop_leaves_the_end_out": Mutant(
        "cpu/simd/loops.h",
        "store_lanes(y + i, f(load_lanes(x + i, lanes)...), lanes);",
        "if (lanes == kLanes) store_lanes(y + i, f(load_lanes(x + i, lanes)...), lanes);",
        ("activation",),
    ),
}  # fmt: skip
