"""linear, alone and with an activation and dropout, for the shared suite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pyops
from pyops import functional as F
from pyops.kinds import RELU, Activation

from ..backends import CPP, THOROUGH, Backend, raw
from ..cases import Case, Op, normal
from ..contract import BOTH, FLOAT, Contract, Mistake, bad, over
from ..mutants import Mutant
from ..triton_cases import BF16, F32, F64, meta

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp_min(0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": torch.tanh,
    "selu": torch.selu,
    "softplus": lambda x: x.exp().log1p(),
    "elu": torch.nn.functional.elu,
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x / 2**0.5),
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": lambda x: x / (1 + (-x).exp()),
    "hardswish": torch.nn.functional.hardswish,
    "relu6": lambda x: x.clamp(0, 6),
    "hardtanh": lambda x: x.clamp(-1, 1),
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
}
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch.nn.functional, name) for name in ACTIVATIONS if name != "gelu_tanh"},
    "gelu_tanh": ACTIVATIONS["gelu_tanh"],
}


def formula(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    z = (input.unsqueeze(-2) * weight).sum(-1)
    z = z if bias is None else z + bias
    return z if activation is None else ACTIVATIONS[activation](z)


def torchs(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    z = torch.nn.functional.linear(input, weight, bias)
    return z if activation is None else TORCHS[activation](z)


OPS = {"linear": Op(F.linear, torchs, formula, ("input", "weight", "bias"))}


def case(
    name: str,
    leading: tuple[int, ...],
    k: int,
    n: int,
    *,
    bias: bool = True,
    activation: str | None = None,
    quick: bool = True,
) -> Case:
    """One product of ``leading`` x k and n x k, of about unit variance."""

    def make(g: torch.Generator) -> dict[str, Tensor]:
        tensors = {"input": normal(g, (*leading, k)), "weight": normal(g, (n, k), 1 / max(k, 1) ** 0.5)}
        return {**tensors, "bias": normal(g, (n,))} if bias else tensors

    options = {} if activation is None else {"activation": activation}
    shape = "x".join(map(str, (*leading, k)))
    id = f"linear_{name}_{shape}_to_{n}{'' if bias else '_no_bias'}{f'_{activation}' if activation else ''}"
    return Case(id, "linear", make, options, quick)


# More than one block of k, thin products, ends inside a vector of every variant (4 to 16 lanes).
SMOKE = [
    case("smoke", (19,), 300, 37, activation="relu"),
    case("smoke", (19,), 31, 37, activation="gelu"),
    case("smoke", (1090,), 5, 31),
    case("smoke", (3,), 37, 21, activation="tanh"),
    case("smoke", (2, 9), 3, 21, bias=False),
]


def _check_dropout(backend: Backend) -> None:
    """One element in the middle of a mask is the pyops.dropout of the contiguous output."""
    x, w = torch.rand(9, 5), torch.rand(21, 5)
    seed = torch.tensor([7, 8])
    found = raw(backend, "linear_forward")(x, w, None, seed, 0.5, 1, 0.0, 0.0, False)[0]
    torch.testing.assert_close(found, pyops.reference.linear.linear(x, w, None, seed, 0.5, Activation(RELU)))


SMOKE_CHECKS = {"linear_dropout": _check_dropout}


# Of each backend: leading dimensions, layouts, every activation.
_LEADING = [case("leading", shape, 7, 5) for shape in [(), (1,), (6,), (2, 3), (2, 1, 3)]]
# 4 and 5 rows or terms: the last thin product and the first packed one; 300 terms: two blocks; 33, 131: ends
# inside vectors and tiles.
_SIZES = [
    case("size", (m,), k, n, activation="relu", quick=m * n * k < 3000)
    for m, k, n in [
        (1, 40, 33),
        (4, 13, 17),
        (5, 13, 17),
        (9, 4, 19),
        (9, 5, 19),
        (33, 300, 37),
        (67, 33, 131),
    ]
]
_ACTIVATIONS = [case("activation", (9,), 13, 21, activation=a) for a in ACTIVATIONS]
_LARGE = [
    case("large", (300,), 257, 300, activation="gelu", quick=False),
    case("large", (1,), 2000, 1000, activation="tanh", quick=False),
    case("large", (2000,), 3, 1030, bias=False, quick=False),
    case("oneDNN", (129,), 190, 131, activation="silu", quick=False),
]
_EMPTY = [
    case("empty", leading, k, n, activation=a)
    for leading, k, n in [((0,), 3, 4), ((2, 0), 3, 4), ((3,), 0, 4), ((3,), 4, 0), ((0,), 0, 0)]
    for a in (None, "relu", "gelu")
]
SMALL = [
    case("compact", (4,), 7, 5),
    case("compact", (2, 3), 7, 5, activation="relu", bias=False),
    case("compact", (4,), 7, 5, activation="gelu"),
]
_X, _W, _Y, _SEED = torch.zeros(3, 5), torch.zeros(2, 5), torch.zeros(3, 2), torch.tensor([1, 2])
_PLAIN = (0.5, 0, 0.0, 0.0)

_MISTAKES = bad(
    "linear",
    (TypeError, "input must be a Tensor, got list", {"input": [1.0]}),
    (TypeError, "weight must be a Tensor, got NoneType", {"weight": None}),
    (ValueError, "activation must be None or one of .*'relu'.* got 'swish'", {"activation": "swish"}),
    (ValueError, r"dropout_p must be between 0 and 1, got 1.5", {"dropout_p": 1.5}),
    (ValueError, r"dropout_p must be between 0 and 1, got nan", {"dropout_p": float("nan")}),
    (RuntimeError, r"input must have shape \(40, 6\), got \(40, 7\)", {"input": torch.zeros(40, 7)}),
    (RuntimeError, "input must have at least 1 dimension", {"input": torch.zeros(())}),
    (RuntimeError, r"weight must have 2 dimensions, got shape", {"weight": torch.ones(1, 1, 1)}),
    (RuntimeError, "weight must have dtype Float, got Double", {"weight": torch.zeros(5, 6).double()}),
    (RuntimeError, r"bias must have shape \(5\), got \(4\)", {"bias": torch.zeros(4)}),
    (RuntimeError, "bias must have dtype Float, got Half", {"bias": torch.zeros(5).half()}),
    input=torch.zeros(40, 6),
    weight=torch.zeros(5, 6),
    bias=torch.zeros(5),
)


def _with_gradients(mistake: Mistake) -> Mistake:
    *call, options = mistake
    needing = {k: t.clone().requires_grad_() if isinstance(t, Tensor) else t for k, t in options.items()}
    return (*call, needing)


CONTRACT = Contract(
    small=SMALL,
    accuracy=over(_LEADING, FLOAT)
    + over(_SIZES)
    + over(_ACTIVATIONS, FLOAT)
    # Not Triton: its interpreter truncates to bfloat16 where GPUs round, here twice.
    + over(_ACTIVATIONS, [torch.float64, torch.float16, torch.bfloat16], THOROUGH)
    + over(_LARGE, BOTH, [CPP])
    + over(_EMPTY, FLOAT),
    strided_input=over(
        [case("layout", (6,), 7, 5, activation="relu"), case("layout", (2, 3, 4), 7, 5)], BOTH
    ),
    gradcheck=over([case("gradcheck", (2, 3), 4, 5, activation=a) for a in (None, "relu", "gelu", "tanh")]),
    same_bits=over(
        [
            case("threads", (301,), 520, 257, activation="gelu", quick=False),
            case("threads", (2000,), 3, 1030, quick=False),
            case("threads", (2,), 1030, 2000, quick=False),
            case("runs", (9,), 13, 33, activation="relu"),
        ]
    ),
    autocast=over(SMALL[:2], [torch.float32, torch.float16, torch.float64]),
    raw_ops=r"linear|bias_activation_dropout|gemm_",
    raw_op_refuses=[
        ("linear_forward", (_X.long(), _W.long(), None, None, *_PLAIN, False)),
        ("linear_forward", (_X, _W.double(), None, None, *_PLAIN, False)),
        ("linear_forward", (_X, torch.zeros(2, 4), None, None, *_PLAIN, False)),
        ("linear_forward", (torch.zeros(()), _W, None, None, *_PLAIN, False)),
        ("linear_forward", (torch.zeros(6, 10)[::2, ::2], _W, None, None, *_PLAIN, False)),
        ("linear_forward", (torch.zeros(3, 5, 2).transpose(1, 2), _W, None, None, *_PLAIN, False)),
        ("linear_forward", (_X, _W, torch.zeros(3), None, *_PLAIN, False)),
        ("linear_forward", (_X, _W, torch.zeros(4)[::2], None, *_PLAIN, False)),
        ("linear_forward", (_X, _W, torch.zeros(2).half(), None, *_PLAIN, False)),
        ("linear_forward", (_X, _W, None, torch.tensor([1]), *_PLAIN, False)),
        ("linear_forward", (_X, _W, None, torch.zeros(2), *_PLAIN, False)),
        ("linear_forward", (_X, _W, None, _SEED, 1.5, 0, 0.0, 0.0, False)),
        ("linear_forward", (_X, _W, None, None, 0.5, 99, 0.0, 0.0, False)),
        ("linear_backward", (_Y.t(), _X, _W, None, None, *_PLAIN, True, True, True, True)),
        ("linear_backward", (_Y, None, _W, None, None, *_PLAIN, True, True, True, True)),
        ("linear_backward", (_Y, _X[:2], _W, None, None, *_PLAIN, True, True, True, True)),
        ("linear_backward", (_Y, _X.half(), _W, None, None, *_PLAIN, True, True, True, True)),
        ("linear_backward", (_Y, _X, _W, None, None, 0.5, 1, 0.0, 0.0, True, True, True, True)),
        ("linear_backward", (_Y, _X, _W, _X, None, 0.5, 1, 0.0, 0.0, True, True, True, True)),
        ("linear_backward", (_Y, _X, _W, _Y, None, 0.5, 8, 0.0, 0.0, True, True, True, True)),
        ("linear_backward", (_Y, _X, _W, None, _SEED[:1], *_PLAIN, True, True, True, True)),
    ],
    bad_arguments=[*_MISTAKES, *map(_with_gradients, _MISTAKES)],
)


def valid_arguments() -> dict[str, tuple]:
    x, w, y, seed = torch.randn(3, 5), torch.randn(2, 5), torch.randn(3, 2), torch.tensor([1, 2])
    return {
        "linear_forward": (x, w, torch.randn(2), seed, 0.5, 8, 0.0, 0.0, True),
        "linear_backward": (y, x, w, y, seed, 0.5, 1, 0.0, 0.0, True, True, True, True),
    }


CUDA_CODE = {"linear": []}  # it has no kernel and only calls those of others


def _triton(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    kind: int,
    *,
    dropout: bool = False,
    saved_is_output: bool = True,
) -> None:
    from pyops.triton_kernels import linear

    x, w, bias = meta(m, k, dtype=dtype), meta(n, k, dtype=dtype), meta(n, dtype=dtype)
    seed = meta(2, dtype=torch.int64) if dropout else None
    options = (0.1, kind, 0.0, 0.0)
    y, z = linear.linear_forward(x, w, bias, seed, *options, not saved_is_output)
    saved = None if kind == 0 else y if saved_is_output else z
    linear.linear_backward(y, x, w, saved, seed, *options, saved_is_output, True, True, True)


TRITON_CASES = {
    "linear-relu-dropout-bfloat16": lambda: _triton(4096, 4096, 4096, BF16, 1, dropout=True),
    "linear-gelu-bfloat16": lambda: _triton(4096, 4096, 1024, BF16, 8, saved_is_output=False),
    "linear-tanh-float32": lambda: _triton(256, 257, 784, F32, 4),
    "linear-gelu-float64": lambda: _triton(512, 512, 64, F64, 8, saved_is_output=False),
}


MUTANTS = {
    "column_sums_drop_the_last_block": Mutant(
        "cpu/epilogue/matrix.h",
        "for (int64_t b = 1; b < blocks; ++b) sum",
        "for (int64_t b = 1; b < blocks - 1; ++b) sum",
        ("linear",),
    ),
    "epilogue_runs_after_the_first_block_of_k": Mutant(
        "cpu/gemm/gemm.h",
        "if (target.last) finished(row, rows);",
        "if (target.first) finished(row, rows);",
        ("linear",),
    ),
    "skinny_products_forget_the_last_columns": Mutant(
        "cpu/gemm/skinny.h", "for (; j < end; ++j) {", "for (; j + 1 < end; ++j) {", ("gemm/gemm",)
    ),
}
