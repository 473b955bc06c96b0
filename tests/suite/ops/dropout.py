"""dropout, alone and fused, for the shared suite: formulas with a mask of its own, from NumPy's integers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pyops import functional as F
from pyops.kinds import Activation
from pyops.ops import dropout as implementation

from ..backends import Backend
from ..cases import Case, Op, normal
from ..contract import BOTH, FLOAT, Contract, bad, over
from ..mutants import Mutant
from ..triton_cases import BF16, F16, F32, F64, meta

SEED = (0x0123456789ABCDEF, -0x0FEDCBA987654321)

# torch's functions by the names that ``activation`` takes.
ACTIVATIONS = {
    None: lambda x: x,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "selu": torch.selu,
    "softplus": torch.nn.functional.softplus,
    "elu": torch.nn.functional.elu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "hardswish": torch.nn.functional.hardswish,
    "relu6": torch.nn.functional.relu6,
    "hardtanh": torch.nn.functional.hardtanh,
}


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., SC 2011) of counters [N, 4], words [N, 4]."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k, low = list(key), np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), b & low,
             (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), a & low]  # fmt: skip
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return np.stack(c, 1)


def draws(seed: tuple[int, int], count: int, first: int = 0) -> np.ndarray:
    """32-bit draws of elements ``first``, ..., ``first + count - 1``.

    The low halves are the exclusive or of the block's eight high ones.
    """
    key, stream = (s % 2**64 for s in seed)
    blocks = np.arange(first // 8, (first + count + 7) // 8, dtype=np.uint64)
    counter = np.empty((len(blocks), 4), np.uint64)
    counter[:, 0], counter[:, 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
    counter[:, 2], counter[:, 3] = stream % 2**32, stream >> 32
    words = philox(counter, (key % 2**32, key >> 32)).astype(np.uint32)
    high = words.view(np.uint16).reshape(-1, 8)
    low = np.bitwise_xor.reduce(high, axis=1, keepdims=True)
    return (high.astype(np.uint32) << np.uint32(16) | low).reshape(-1)[first % 8 :][:count]


def factors(p: float, shape: tuple[int, ...], seed: tuple[int, int] = SEED) -> Tensor:
    """What the elements are multiplied by, in float64."""
    threshold = math.floor(p * 2**32 + 0.5)
    if 0 < p < 1:
        threshold = min(max(threshold, 1), 2**32 - 1)
    count = int(np.prod(shape, dtype=np.int64))
    kept = draws(seed, count).astype(np.int64) >= threshold
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.from_numpy(kept * scale).view(shape)


@contextmanager
def fixed_seed(seed: tuple[int, int] = SEED) -> Iterator[None]:
    """Dropout draws this seed on every device."""

    def on(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        # Filled there: a copy from the host could not be captured in a graph.
        return torch.stack([torch.full((), word, device=device) for word in seed])

    draw = implementation.draw_seed
    implementation.draw_seed = on
    try:
        yield
    finally:
        implementation.draw_seed = draw


def dropout(input: Tensor, p: float) -> Tensor:
    with fixed_seed():
        return F.dropout(input, p)


def torch_dropout(input: Tensor, p: float) -> Tensor:
    return input * factors(p, input.shape).to(input.dtype)


def fused(
    input: Tensor,
    p: float,
    activation: str | Activation | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    with fixed_seed():
        return F.dropout(input, p, bias=bias, activation=activation, residual=residual)


def torch_fused(
    input: Tensor,
    p: float,
    activation: str | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    value = ACTIVATIONS[activation](input if bias is None else input + bias)
    value = value * factors(p, input.shape).to(value.dtype)
    return value if residual is None else residual + value


OPS = {
    "dropout": Op(dropout, torch_dropout, torch_dropout, ("input",)),
    "fused_dropout": Op(fused, torch_fused, torch_fused, ("input", "bias", "residual")),
}


def plain_case(shape: tuple[int, ...], p: float = 0.3, quick: bool = True) -> Case:
    name = f"{'x'.join(map(str, shape)) or 'scalar'}_p{p}"
    return Case(name, "dropout", lambda g: {"input": normal(g, shape)}, {"p": p}, quick)


def fused_case(
    shape: tuple[int, ...],
    bias: tuple[int, ...] | None,
    activation: str | None = "relu",
    residual: bool = False,
    p: float = 0.3,
    quick: bool = True,
) -> Case:
    def make(generator: torch.Generator) -> dict[str, Tensor]:
        tensors = {"input": normal(generator, shape)}
        if bias is not None:
            tensors["bias"] = normal(generator, bias)
        if residual:
            tensors["residual"] = normal(generator, shape)
        return tensors

    parts = ["x".join(map(str, shape)), "nobias" if bias is None else "x".join(map(str, bias))]
    name = "_".join([*parts, str(activation), *["residual"] * residual, f"p{p}"])
    return Case(name, "fused_dropout", make, {"p": p, "activation": activation}, quick)


# The sums of a bias's gradient over more rows than are added one by one, over joined and over single rows.
SMOKE = [
    plain_case((3, 419)),
    fused_case((1000, 37), (37,), "sigmoid"),
    fused_case((5, 300), (300,), "relu", residual=True),
    fused_case((3, 4, 9, 13), (4, 1, 1), "gelu"),
]


def _check_mask(backend: Backend) -> None:
    ones = torch.ones(2500)
    assert torch.equal(dropout(ones, 0.25), factors(0.25, ones.shape).float())


SMOKE_CHECKS = {"dropout_mask": _check_mask}


_PLAIN = [plain_case(s) for s in [(), (1,), (5, 7), (2, 3, 4, 5)]] + [
    plain_case((3, 419), p) for p in (1e-3, 0.1, 0.5, 0.9, 1.0)
]
_LARGE = [plain_case((70_001, 3), quick=False), plain_case((3, 40_009), quick=False)]
# Rows of groups of eight and not, joined rows, rows with one bias each, tiles in both directions.
_FUSED = [
    fused_case((32, 16), (16,)),
    fused_case((5, 300), (300,)),
    fused_case((37, 13), (1, 13)),
    fused_case((3, 4, 5, 6), (4, 1, 1), "sigmoid"),
    fused_case((3, 4, 8, 16), (4, 1, 1), "gelu", residual=True),
    fused_case((2, 3, 17, 13), (1, 3, 1, 1)),
    fused_case((4, 6), (1,)),
    fused_case((4, 6), ()),
    fused_case((6, 4), (6, 1), None),
    fused_case((7,), (7,), residual=True),
    fused_case((3, 41), None, None, residual=True),
    fused_case((3, 41), None, "tanh"),
    fused_case((5, 24), (24,), "sigmoid", p=0.0),
    fused_case((5, 24), (24,), "sigmoid", p=0.9),
    fused_case((5, 24), (24,), "silu", p=1.0),
]
_FUSED_LARGE = [
    fused_case((9000, 37), (37,), "sigmoid", quick=False),
    fused_case((150, 2500), (2500,), quick=False),
    fused_case((70, 5, 7, 7), (5, 1, 1), quick=False),
    fused_case((3, 5, 190, 190), (5, 1, 1), "relu", residual=True, quick=False),
]
_ACTIVATIONS = [
    fused_case((11, 40), (40,), name, residual) for name in ACTIVATIONS for residual in (False, True)
]
_EMPTY = [
    plain_case((0, 5)),
    fused_case((0, 5), (5,)),
    fused_case((5, 0), (0,)),
    fused_case((3, 4, 0), (4, 1)),
]
_LAYOUT_CASES = [
    plain_case((2, 5, 3, 4)),
    fused_case((2, 5, 3, 4), (5, 1, 1), "gelu", residual=True),
    fused_case((6, 7), (7,)),
]
SMALL = [
    plain_case((3, 5)),
    fused_case((3, 5), (5,), "relu"),
    fused_case((3, 5), (5,), "sigmoid"),
    fused_case((2, 4, 3), (4, 1), "gelu", residual=True),
    fused_case((3, 5), (5,), "softplus"),
    fused_case((3, 5), None, None, residual=True),
]
_X = torch.zeros(3, 5)
_SEED = torch.tensor(SEED)
_FORWARD, _BACKWARD = "bias_activation_dropout_forward", "bias_activation_dropout_backward"


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_PLAIN + _LARGE) + over(_FUSED + _FUSED_LARGE) + over(_ACTIVATIONS) + over(_EMPTY, FLOAT),
    strided_input=over(_LAYOUT_CASES, BOTH, layouts=["sliced", "expanded", "offset"]),
    strided_upstream=over(_LAYOUT_CASES),
    compile=(),  # the masks of two calls differ: test_dropout_autograd.py
    same_bits=over(
        [
            plain_case((7, 40_009), quick=False),
            plain_case((9, 33)),
            *_FUSED_LARGE,
            fused_case((40, 13), (13,)),
        ]
    ),
    autocast=over(SMALL[:2]),
    meta=(),  # the suite's masks are on the CPU: test_dropout_arguments.py
    raw_op_refuses=[
        ("dropout", (_X, _SEED, 1.5)),
        ("dropout", (_X, _SEED, math.nan)),
        ("dropout", (_X, _SEED[:1], 0.5)),
        ("dropout", (_X, _SEED.int(), 0.5)),
        ("dropout", (_X.t(), _SEED, 0.5)),
        ("dropout", (_X.long(), _SEED, 0.5)),
        ("dropout_", (_X.t(), _SEED, 0.5)),
        ("dropout_", (_X, _SEED[::2], 0.5)),
        (_FORWARD, (_X, _X[0], None, _SEED, 0.5, 14, 0.0, 0.0, 1)),
        (_FORWARD, (_X, _X[0], None, _SEED, 0.5, -1, 0.0, 0.0, 1)),
        (_FORWARD, (_X, _X[0], None, _SEED, 0.5, 1, 0.0, 0.0, 2)),
        (_FORWARD, (_X, _X[0], None, _SEED, 0.5, 1, 0.0, 0.0, 0)),
        (_FORWARD, (_X, _X[0].double(), None, _SEED, 0.5, 1, 0.0, 0.0, 1)),
        (_FORWARD, (_X, None, _X[:2], _SEED, 0.5, 1, 0.0, 0.0, 1)),
        (_FORWARD, (_X, None, _X.view(5, 3).t(), _SEED, 0.5, 1, 0.0, 0.0, 1)),
        (_BACKWARD, (_X, None, None, _SEED, 0.5, 1, 0.0, 0.0, 1, True, False)),
        (_BACKWARD, (_X, _X, None, _SEED, 0.5, 8, 0.0, 0.0, 1, True, False)),
        (_BACKWARD, (_X, _X, None, _SEED, 0.5, 2, -1.0, 0.0, 1, True, False)),
        (_BACKWARD, (_X, _X[:2], None, _SEED, 0.5, 1, 0.0, 0.0, 1, True, False)),
        (_BACKWARD, (_X, _X, _X[0, :3], _SEED, 0.5, 8, 0.0, 0.0, 1, False, False)),
        (_BACKWARD, (_X, _X, None, _SEED, 0.5, 1, 0.0, 0.0, 2, True, True)),
        (_BACKWARD, (_X, _X, None, _SEED, 2.0, 1, 0.0, 0.0, 1, True, True)),
    ],
    bad_arguments=bad(
        "dropout",
        (ValueError, "p must be a probability between 0 and 1, got 1.5", {"p": 1.5}),
        (ValueError, "p must be a probability between 0 and 1, got -0.1", {"p": -0.1}),
        (ValueError, "p must be a probability between 0 and 1, got nan", {"p": math.nan, "training": False}),
        (TypeError, "input must be a Tensor, got list", {"input": [1.0]}),
        (TypeError, "input must be a Tensor, got list", {"input": [1.0], "activation": "relu"}),
        (TypeError, "input must be a floating.*int64", {"input": _X.long(), "activation": "relu"}),
        (TypeError, "bias must be a Tensor, got float", {"bias": 1.0}),
        (TypeError, "bias must be a floating.*int64", {"bias": torch.zeros(5).long()}),
        (ValueError, r"bias must have.*\(3, 5\), got \(3,\)", {"bias": torch.zeros(3)}),
        (ValueError, r"bias must have.*\(3, 5\), got \(3, 5\)", {"bias": _X}),
        (ValueError, r"bias must have.*\(3, 5\), got \(1, 1, 5\)", {"bias": torch.zeros(1, 1, 5)}),
        (ValueError, r"bias must have.*\(\), got \(\)", {"input": torch.zeros(()), "bias": torch.zeros(())}),
        (RuntimeError, "bias must be on cpu", {"bias": torch.zeros(5, device="meta")}),
        (ValueError, r"residual must have shape \(3, 5\)", {"residual": torch.zeros(5)}),
        (ValueError, "activation must be None or one of 'relu'.*'nope'", {"activation": "nope"}),
        (ValueError, "inplace=True cannot be combined", {"inplace": True, "activation": "relu"}),
        input=_X,
    ),
)


LAYERS = {
    "Dropout": [{"p": 0.0}, {"p": 1.0}, {"p": 0.0, "inplace": True}],
}


def valid_arguments() -> dict[str, tuple]:
    x, bias, seed = torch.randn(3, 5), torch.randn(5), torch.tensor(SEED)
    return {
        "dropout": (x, seed, 0.5),
        "dropout_": (x, seed, 0.5),
        "bias_activation_dropout_forward": (x, bias, x.clone(), seed, 0.5, 1, 0.0, 0.0, 1),
        "bias_activation_dropout_backward": (x, x, bias, seed, 0.5, 8, 0.0, 0.0, 1, False, True),
    }


def _triton(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from pyops.triton_kernels import dropout

    dropout.dropout(meta(*shape, dtype=dtype), meta(2, dtype=torch.int64), 0.5)


def _triton_fused(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kind: int,
    dim: int = -1,
    *,
    from_output: bool = False,
    residual: bool = False,
    needs_bias: bool = True,
) -> None:
    from pyops.triton_kernels import dropout

    x, bias = meta(*shape, dtype=dtype), meta(shape[dim], dtype=dtype)
    mask, activation = (meta(2, dtype=torch.int64), 0.5), (kind, 1.0, 20.0, dim)
    dropout.bias_activation_dropout_forward(x, bias, x if residual else None, *mask, *activation)
    dropout.bias_activation_dropout_backward(x, x, bias, *mask, *activation, from_output, needs_bias)


TRITON_CASES = {
    "dropout-float32": lambda: _triton((1024, 1024), F32),
    "dropout-odd-bfloat16": lambda: _triton((1001, 777), BF16),
    "dropout-float64": lambda: _triton((64, 4096), F64),
    "dropout-bias-relu-float32": lambda: _triton_fused((256, 4096), F32, 1, from_output=True),
    "dropout-bias-relu-bfloat16": lambda: _triton_fused((8192, 8192), BF16, 1, from_output=True),
    "dropout-bias-gelu-residual-bfloat16": lambda: _triton_fused((4096, 768), BF16, 8, residual=True),
    "dropout-bias-gelu-odd-float32": lambda: _triton_fused((4096, 777), F32, 8),
    "dropout-bias-gelu-no_gradient-odd-float32": lambda: _triton_fused((4096, 777), F32, 8, needs_bias=False),
    "dropout-image-sigmoid-float16": lambda: _triton_fused((64, 256, 16, 16), F16, 3, 1),
    "dropout-image-tanh-odd-float64": lambda: _triton_fused((8, 16, 7, 7), F64, 4, 1, from_output=True),
}


MUTANTS = {
    "dropout_scales_by_nothing": Mutant(
        "math/dropout.h",
        "T(1.0 / (1.0 - p))",
        "T(1)",
        ("dropout",),
    ),
    "dropout_mask_of_a_piece_starts_at_its_block": Mutant(
        "cpu/simd/philox.h", "return draws_ + first % kDrawsPerBlock;", "return draws_;", ("dropout",)
    ),
    "dropout_derivative_of_a_scaled_output": Mutant(
        "cpu/epilogue/row.h",
        "if (s.is_output) return v * unscale;",
        "if (s.is_output) return v;",
        ("dropout",),
    ),
    "dropout_bias_gradient_keeps_the_last_rows_alone": Mutant(
        "cpu/dropout.cpp", "total[i] += sums[i];", "total[i] = sums[i];", ("dropout",)
    ),
    "dropout_odd_elements_take_the_mask_of_even_ones": Mutant(
        "cpu/epilogue/pairs.h", "factor(pairs >> 16)", "factor(pairs & 0xffffu)", ("dropout",)
    ),
}
