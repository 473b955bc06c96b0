"""prelu for the shared suite."""

from __future__ import annotations

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import CPP, THOROUGH, TRITON
from ..cases import Case, Op, normal, uniform
from ..contract import BOTH, FLOAT, Contract, bad, over
from ..cuda_code import PACKS
from ..mutants import Mutant
from ..triton_cases import BF16, F32, F64, meta


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() == 1:
        slopes = weight.reshape(())
    else:
        slopes = weight.view([-1 if i == 1 else 1 for i in range(input.dim())])
    return torch.where(input > 0, input, slopes * input)


OPS = {"prelu": Op(F.prelu, torch.nn.functional.prelu, prelu, ("input", "weight"))}


def case(shape: tuple[int, ...], slopes: tuple[int, ...], *, quick: bool = True) -> Case:
    def make(generator: torch.Generator) -> dict[str, Tensor]:
        return {"input": normal(generator, shape), "weight": uniform(generator, slopes)}

    return Case(f"prelu_{'x'.join(map(str, shape)) or 'scalar'}_{slopes}", "prelu", make, {}, quick)


# Rows of slopes (one, per column, few pixels) and runs of one channel; the ends lie inside vectors.
SMOKE = [case((9, 43), (1,)), case((9, 43), (43,)), case((2, 5, 7), (5,)), case((2, 3, 149), (3,))]


# One slope; a slope per column, fewer and more than a row of slopes is wide; few pixels, many pixels.
_SIZES = [
    case((5,), (1,)),
    case((3, 1031), (1,)),
    case((33, 7), (7,)),
    case((3, 1100), (1100,)),
    case((2, 5, 7), (5,)),
    case((2, 3, 17, 19), (3,)),
]
_SHAPES = [
    case((), (1,)),
    case((), ()),
    case((7,), ()),
    case((0, 3), (3,)),
    case((3, 0), (0,)),
    case((2, 0, 3), (1,)),
    case((2, 4, 1, 3, 2), (4,)),
    case((40, 1), (1,)),
]
# Several blocks of sums each way; 20_011 elements of a channel are several chunks.
_LARGE = [
    case((300_007,), (1,), quick=False),
    case((50_021, 7), (7,), quick=False),
    case((70, 5003), (5003,), quick=False),
    case((40, 130, 50), (130,), quick=False),
    case((3, 3, 20_011), (3,), quick=False),
]
SMALL = [case((4, 7), (7,)), case((2, 3, 4), (1,))]
_X, _W = torch.zeros(3, 5), torch.zeros(5)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_SIZES) + over(_SHAPES, FLOAT) + over(_LARGE, BOTH, [CPP]),
    strided_input=over([case((6, 7), (7,)), case((2, 5, 3, 4), (5,))]),
    strided_upstream=over([case((2, 5, 3, 4), (5,))]),
    gradcheck=over([*SMALL, case((), (1,))], backends=[CPP, TRITON]),
    compile=over([*SMALL, case((2, 5, 3, 4), (5,))], FLOAT),
    same_bits=over([*_LARGE, *SMALL], FLOAT, [CPP]),
    autocast=over(SMALL, [torch.float32, torch.bfloat16, torch.float64], THOROUGH),
    raw_op_refuses=[
        ("prelu_forward", (_X, _W, 0)),
        ("prelu_forward", (_X, _W, 2)),
        ("prelu_forward", (_X, _W, -1)),
        ("prelu_forward", (_X, _W[:3], 1)),
        ("prelu_forward", (_X, _W[None], 1)),
        ("prelu_forward", (_X, _W.double(), 1)),
        ("prelu_forward", (_X.t(), _W, 0)),
        ("prelu_forward", (_X.long(), _W.long(), 1)),
        ("prelu_forward", (_X[0, 0], _W, 0)),
        ("prelu_backward", (_X[:2], _X, _W, 1)),
        ("prelu_backward", (_X.double(), _X, _W, 1)),
        ("prelu_backward", (_X.view(5, 3).t(), _X, _W, 1)),
        ("prelu_backward", (_X, _X, _W[::2], 1)),
    ],
    bad_arguments=bad(
        "prelu",
        (TypeError, "input must be a Tensor, got list", ([1.0], torch.ones(1))),
        (TypeError, "weight must be a Tensor, got float", (torch.ones(3), 0.25)),
        (TypeError, "input must be a floating.*int64", (torch.ones(3).long(), torch.ones(1))),
        (TypeError, "weight must have dtype torch.float32.*float64", (torch.ones(3), torch.ones(1).double())),
        (ValueError, r"weight must .* 1 dimension, got shape \(1, 3\)", (torch.ones(2, 3), torch.ones(1, 3))),
        (ValueError, "weight must have 1 or 3 elements, .* got 2", (torch.ones(2, 3), torch.ones(2))),
        (ValueError, "weight must have 1 element, got 3", (torch.ones(3), torch.ones(3))),
        (RuntimeError, "weight must be on cpu", (torch.ones(3), torch.ones(1, device="meta"))),
    ),
)


LAYERS = {
    "PReLU": [{}, {"num_parameters": 4, "init": 0.1}],
}


def valid_arguments() -> dict[str, tuple]:
    x, weight = torch.randn(3, 5), torch.rand(5)
    return {"prelu_forward": (x, weight, 1), "prelu_backward": (x, x, weight, 1)}


CUDA_CODE = {"prelu": [PACKS]}


def _triton(shape: tuple[int, ...], slopes: int, dtype: torch.dtype) -> None:
    from pyops.triton_kernels import prelu

    x, weight = meta(*shape, dtype=dtype), meta(slopes, dtype=dtype)
    prelu.prelu_forward(x, weight, 1)
    prelu.prelu_backward(x, x, weight, 1)


TRITON_CASES = {
    "prelu-columns-bfloat16": lambda: _triton((4096, 4096), 4096, BF16),
    "prelu-runs-float32": lambda: _triton((16, 64, 56, 56), 64, F32),
    "prelu-one-slope-float64": lambda: _triton((1001, 77), 1, F64),
}


MUTANTS = {
    "prelu_slope_gradient_forgets_the_input": Mutant(
        "math/prelu.h", "V(0), x * grad)", "V(0), grad)", ("prelu",)
    ),
    "prelu_rows_of_slopes_are_in_the_wrong_order": Mutant(
        "cpu/prelu.cpp", "to_acc(weight[c])", "to_acc(weight[s.channels - 1 - c])", ("prelu",)
    ),
}
