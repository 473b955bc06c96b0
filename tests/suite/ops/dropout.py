"""dropout, alone and fused, for the shared suite: formulas with a mask of its own, from NumPy's integers."""

from __future__ import annotations

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
from ..mutants import Mutant

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
    """16-bit draws of elements ``first``, ..., ``first + count - 1``."""
    key, stream = (s % 2**64 for s in seed)
    blocks = np.arange(first // 8, (first + count + 7) // 8, dtype=np.uint64)
    counter = np.empty((len(blocks), 4), np.uint64)
    counter[:, 0], counter[:, 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
    counter[:, 2], counter[:, 3] = stream % 2**32, stream >> 32
    words = philox(counter, (key % 2**32, key >> 32)).astype(np.uint32)
    return words.view(np.uint16).reshape(-1)[first % 8 :][:count]


def factors(p: float, shape: tuple[int, ...], seed: tuple[int, int] = SEED) -> Tensor:
    """What the elements are multiplied by, in float64."""
    threshold = round(p * 65536)
    if 0 < p < 1:
        threshold = min(max(threshold, 1), 65535)
    count = int(np.prod(shape, dtype=np.int64))
    kept = draws(seed, count).astype(np.int64) >= threshold
    scale = 65536 / (65536 - threshold) if threshold < 65536 else 0.0
    return torch.from_numpy(kept * scale).view(shape)


@contextmanager
def fixed_seed(seed: tuple[int, int] = SEED) -> Iterator[None]:
    """Dropout draws this seed on every device."""
    draw = implementation.draw_seed
    implementation.draw_seed = lambda device, generator=None: torch.tensor(seed, device=device)
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


def valid_arguments() -> dict[str, tuple]:
    x, bias, seed = torch.randn(3, 5), torch.randn(5), torch.tensor(SEED)
    return {
        "dropout": (x, seed, 0.5),
        "dropout_": (x, seed, 0.5),
        "bias_activation_dropout_forward": (x, bias, x.clone(), seed, 0.5, 1, 0.0, 0.0, 1),
        "bias_activation_dropout_backward": (x, x, bias, seed, 0.5, 8, 0.0, 0.0, 1, False, True),
    }


MUTANTS = {
    "dropout_scales_by_nothing": Mutant(
        "math/dropout.h",
        "T(double(kDropoutSteps) / double(kDropoutSteps - threshold))}",
        "T(1)}",
        ("dropout",),
    ),
    "dropout_mask_of_a_piece_starts_at_its_block": Mutant(
        "cpu/simd/philox.h", "return draws_ + first % kDrawsPerBlock;", "return draws_;", ("dropout",)
    ),
    "dropout_derivative_of_a_scaled_output": Mutant(
        "cpu/epilogue/fused.h",
        "if (s.is_output) return v * unscale;",
        "if (s.is_output) return v;",
        ("dropout",),
    ),
    "dropout_bias_gradient_keeps_the_last_rows_alone": Mutant(
        "cpu/dropout.cpp", "total[i] += sums[i];", "total[i] = sums[i];", ("dropout",)
    ),
}
