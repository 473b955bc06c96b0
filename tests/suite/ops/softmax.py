"""softmax and log_softmax for the shared suite."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..class_losses import EXTREME_SHAPES, EXTREMES
from ..contract import BOTH, FLOAT, Contract, bad, over
from ..cuda_code import PACKS
from ..mutants import Mutant
from ..triton_cases import BF16, F16, F32, F64, meta


def softmax(input: Tensor, dim: int) -> Tensor:
    shifted = input - input.amax(dim, keepdim=True).detach() if input.numel() else input
    return shifted.exp() / shifted.exp().sum(dim, keepdim=True)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    shifted = input - input.amax(dim, keepdim=True).detach() if input.numel() else input
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def torch_softmax(input: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.softmax(input, dim)


def torch_log_softmax(input: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.log_softmax(input, dim)


OPS = {
    "softmax": Op(F.softmax, torch_softmax, softmax, ("input",)),
    "log_softmax": Op(F.log_softmax, torch_log_softmax, log_softmax, ("input",)),
}


def _case(op: str, shape: tuple[int, ...]) -> Case:
    return Case(f"{op}_{shape}", op, lambda g: {"input": normal(g, shape)}, {"dim": 1})


# Both end inside a vector of every variant (4 to 16 lanes).
SMOKE = [_case(op, shape) for op in OPS for shape in [(9, 37), (2, 5, 29)]]


def case(op: str, name: str, shape: tuple[int, ...], dim: int, *, change=None, quick: bool = True) -> Case:
    def make(generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = normal(generator, shape)
        return {"input": x if change is None else change(x)}

    id = f"{op}_{name}_{'x'.join(map(str, shape)) or 'scalar'}_dim{dim}"
    return Case(id, op, make, {"dim": dim}, quick)


def both(name: str, shape: tuple[int, ...], dim: int, **arguments) -> list[Case]:
    return [case(op, name, shape, dim, **arguments) for op in OPS]


def flat(lists) -> list:
    return list(itertools.chain.from_iterable(lists))


# Each dimension of up to four, counted from either end; the scalar, which is a row of one class.
_DIMS = flat(
    both("dims", shape, dim)
    for shape in [(), (7,), (5, 7), (3, 5, 4), (2, 3, 4, 5)]
    for dim in {*range(-max(len(shape), 1), max(len(shape), 1))}
)
# Primes end inside every vector and tile; 4099 is one piece of the C++ loop more than one, 257 one block of
# threads more than one. Strided rows: 33 and 129 neighbours end inside a panel.
_SIZES = flat(
    both("size", shape, 1)
    for shape in [(1, 1), (3, 16), (5, 127), (1, 1009), (2, 4099), (257, 3), (2, 17, 33)]
)
# Longer than Triton's largest tile: it had no test that went through a row tile by tile.
_LONG = both("long", (1, 16_411), 1)
_LARGE = flat(both("large", shape, 1, quick=False) for shape in [(3, 65_537), (70_001, 3), (2, 1009, 129)])
_EMPTY = flat(both("empty", s, d) for s in [(0, 5), (5, 0), (2, 0, 3), (2, 3, 0), (0, 0)] for d in (0, 1))
_EXTREMES = flat(both(n, s, 1, change=f) for s in EXTREME_SHAPES for n, f in EXTREMES.items())
_LAYOUT_CASES = flat(
    both("layout", s, d) for s, d in [((6, 7), 1), ((3, 5, 6), 1), ((2, 5, 3, 4), 1), ((4, 6), 0)]
)
SMALL = flat(both("compact", s, d) for s, d in [((4, 7), 1), ((2, 5, 3), 1)])
_ROW = torch.zeros(3, 5)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_DIMS, FLOAT)
    + over(_SIZES)
    + over(_LONG, FLOAT)
    + over(_LARGE, BOTH)
    + over(_EMPTY, FLOAT)
    + over(_EXTREMES, FLOAT),
    strided_input=over(_LAYOUT_CASES, BOTH),
    strided_upstream=over(_LAYOUT_CASES),
    gradcheck=over(flat(both("gradcheck", s, d) for s, d in [((3, 5), 1), ((2, 4, 3), 1)])),
    same_bits=over(
        [
            c
            for s, d in [((70_001, 3), 1), ((7, 40_009), 1), ((3, 19, 5003), 1)]
            for c in both("threads", s, d, quick=False)
        ]
        + both("runs", (9, 33), 1)
    ),
    autocast=over(SMALL[:2], [torch.float32, torch.bfloat16, torch.float16]),
    raw_op_refuses=[
        ("softmax_forward", (_ROW, 2, False)),
        ("softmax_forward", (_ROW, -3, False)),
        ("softmax_forward", (_ROW.t(), 0, False)),
        ("softmax_forward", (_ROW.long(), 1, False)),
        ("softmax_forward", (_ROW.bool(), 1, False)),
        ("softmax_backward", (_ROW, _ROW, 2, False)),
        ("softmax_backward", (_ROW[:2], _ROW, 1, False)),
        ("softmax_backward", (_ROW.double(), _ROW, 1, False)),
        ("softmax_backward", (_ROW.view(5, 3).t(), _ROW, 1, False)),
        ("softmax_backward", (_ROW, _ROW.view(5, 3).t(), 1, False)),
        ("softmax_backward", (_ROW.long(), _ROW.long(), 1, False)),
    ],
    bad_arguments=[
        mistake
        for op in OPS
        for mistake in bad(
            op,
            (TypeError, "input must be a floating.*got torch.int64", (torch.zeros(3, dtype=torch.int64), 0)),
            (TypeError, "input must be a Tensor, got list", ([1.0], 0)),
            (IndexError, r"dim must be in \[-2, 1\], got 2", (torch.zeros(3, 5), 2)),
            (IndexError, r"dim must be in \[-2, 1\], got -3", (torch.zeros(3, 5), -3)),
            (IndexError, r"dim must be in \[-1, 0\], got 1", (torch.zeros(()), 1)),
        )
    ],
)


LAYERS = {
    "Softmax": [{"dim": 1}, {"dim": -1}],
    "LogSoftmax": [{"dim": 1}, {"dim": 0}],
}


def valid_arguments() -> dict[str, tuple]:
    x = torch.randn(3, 5)
    return {"softmax_forward": (x, 1, False), "softmax_backward": (x, x, 1, True)}


CUDA_CODE = {"softmax": [PACKS]}


def _triton(shape: tuple[int, ...], dtype: torch.dtype, log: bool) -> None:
    from pyops.triton_kernels.classes import softmax

    x = meta(*shape, dtype=dtype)
    softmax.softmax_backward(x, softmax.softmax_forward(x, 1, log), 1, log)


TRITON_CASES = {
    "softmax-many_rows-float16": lambda: _triton((4096, 100), F16, False),
    "softmax-one_tile-bfloat16": lambda: _triton((4096, 16384), BF16, False),
    "softmax-loop-bfloat16": lambda: _triton((4096, 50257), BF16, False),
    "softmax-inner-float32": lambda: _triton((8, 21, 64, 64), F32, False),
    "log_softmax-one_tile-float32": lambda: _triton((4096, 1000), F32, True),
    "log_softmax-loop-float64": lambda: _triton((64, 10000), F64, True),
}


MUTANTS = {
    "softmax_gradient_forgets_the_row_sum": Mutant(
        "math/softmax.h", "return y * (grad - dot);", "return y * grad;", ("classes/softmax",)
    ),
    "log_softmax_gradient_uses_the_log": Mutant(
        "math/softmax.h",
        "return grad - exp_as<Storage>(y) * grad_sum;",
        "return grad - y * grad_sum;",
        ("classes/softmax",),
    ),
}
