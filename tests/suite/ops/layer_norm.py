"""layer_norm, group_norm and instance_norm for the shared suite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyops import functional as F
from pyops.kinds import ACTIVATIONS as KINDS

from ..backends import CPP, THOROUGH, TRITON
from ..cases import Case, Op, normal
from ..contract import BOTH, FLOAT, Contract, bad, over, spoiled
from ..cuda_code import PACKS
from ..mutants import Mutant
from ..triton_cases import BF16, F32, F64, meta

ACTIVATIONS = {
    None: lambda x: x,
    "relu": torch.relu,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * torch.special.erfc(-x / 2**0.5) / 2,
}


def _standardized(rows: Tensor, eps: float) -> Tensor:
    """Rows along the last dimension."""
    deviation = rows - rows.mean(-1, keepdim=True)
    return deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt()


def layer_norm(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Tensor:
    y = _standardized(input.flatten(-len(normalized_shape)), eps).reshape(input.shape)
    y = y if weight is None else y * weight
    return ACTIVATIONS[activation](y if bias is None else y + bias)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
) -> Tensor:
    y = _standardized(input.reshape(input.shape[0], num_groups, -1), eps).reshape(input.shape)
    along = (-1, *[1] * (input.dim() - 2))
    y = y if weight is None else y * weight.view(along)
    return ACTIVATIONS[activation](y if bias is None else y + bias.view(along))


def instance_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return group_norm(input, input.shape[1], weight, bias)


def _torchs(name: str) -> Any:
    def call(*args: Any, activation: str | None = None, **options: Any) -> Tensor:
        y = getattr(torch.nn.functional, name)(*args, **options)
        return y if activation is None else getattr(torch.nn.functional, activation)(y)

    return call


_TENSORS = ("input", "weight", "bias")
OPS = {
    "layer_norm": Op(F.layer_norm, _torchs("layer_norm"), layer_norm, _TENSORS),
    "group_norm": Op(F.group_norm, _torchs("group_norm"), group_norm, _TENSORS),
    "instance_norm": Op(F.instance_norm, _torchs("instance_norm"), instance_norm, _TENSORS),
}


def _case(op: str, shape: tuple[int, ...], parameters: tuple[int, ...], affine: bool, **more: Any) -> Case:
    quick = more.pop("quick", True)
    mean = more.pop("mean", 0.5)

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        drawn = {"input": normal(generator, shape, 2.0) + mean}
        if affine:
            drawn |= {"weight": normal(generator, parameters), "bias": normal(generator, parameters)}
        return drawn

    described = "_".join(str(v).replace(" ", "") for v in more.values())
    id = f"{op}_{'x'.join(map(str, shape))}_{described}{'' if affine else '_plain'}_{mean}"
    return Case(id, op, make, more, quick)


def rows(shape: tuple[int, ...], dims: int = 1, affine: bool = True, **more: Any) -> Case:
    """layer_norm over the last ``dims`` dimensions."""
    last = shape[len(shape) - dims :]
    return _case("layer_norm", shape, last, affine, normalized_shape=last, **more)


def groups(shape: tuple[int, ...], count: int, affine: bool = True, **more: Any) -> Case:
    return _case("group_norm", shape, shape[1:2], affine, num_groups=count, **more)


def channels(shape: tuple[int, ...], affine: bool = True, **more: Any) -> Case:
    return _case("instance_norm", shape, shape[1:2], affine, **more)


# Enough parameters for medians of their gradients' errors. Ends inside vectors; rows shorter than a vector; a
# weight for each element, and for runs of them.
SMOKE = [
    rows((9, 43)),
    rows((3, 4, 7), 2, activation="relu"),
    groups((2, 24, 5, 3), 4),
    groups((3, 32), 4, activation="silu"),
    channels((2, 21, 37)),
]
SMALL = [rows((4, 7)), groups((2, 4, 3, 2), 2), channels((2, 3, 5))]

_SIZES = [
    rows((5, 1)),
    rows((131, 17), affine=False),
    rows((3, 1031), activation="gelu"),
    rows((7, 19), mean=1000.0),
    groups((2, 6, 7, 9), 3, affine=False, activation="relu"),
    groups((2, 20, 131), 1),
    channels((3, 2, 4, 5), affine=False),
]
# Several chunks of a row, several blocks of rows.
_LARGE = [
    rows((3, 40_009), quick=False),
    rows((3001, 37), quick=False),
    rows((70, 512), activation="silu", quick=False),
    groups((3, 32, 61, 67), 4, quick=False),
    groups((40, 24, 5), 6, activation="relu", quick=False),
]
_X, _W = torch.zeros(4, 6), torch.zeros(6)
_FORWARD = (_X, _W, _W, 6, 1, 1, 1e-5, 0, 0.0, 0.0)
_BACKWARD = (_X, _X, _W, _W, _X[:, 0].contiguous(), _X[:, 0].contiguous(), 6, 1, 1, 0, 0.0, 0.0, True)

CONTRACT = Contract(
    small=SMALL,
    accuracy=over(SMOKE) + over(_SIZES, BOTH) + over(_LARGE, BOTH, [CPP]),
    strided_input=over([rows((6, 7)), groups((2, 4, 3, 2), 2)]),
    strided_upstream=over([groups((2, 4, 3, 2), 2)]),
    gradcheck=over(
        [*SMALL, rows((3, 5), activation="gelu"), rows((3, 4), affine=False)], backends=[CPP, TRITON]
    ),
    compile=over([*SMALL, rows((4, 7), activation="silu")], FLOAT, [CPP]),
    same_bits=over([*_LARGE, *SMALL], FLOAT, [CPP]),
    autocast=over(SMALL, backends=THOROUGH),
    raw_op_refuses=[
        *spoiled(
            "layer_norm_forward",
            _FORWARD,
            {0: _X.t()},
            {0: _X.long()},
            {1: _W[:5]},
            {1: _W.double()},
            {2: _X[0, ::2]},
            {3: 0},
            {3: 7},
            {4: 0},
            {4: 4},
            {5: 0},
            {5: 3},
            {7: len(KINDS)},
        ),
        *spoiled(
            "layer_norm_backward",
            _BACKWARD,
            {0: _X[:2]},
            {0: _X.double()},
            {0: _X.view(6, 4).t()},
            {1: _X.long()},
            {2: _W[:5]},
            {4: _W},
            {5: _X[:, 0]},
            {5: _X[:, 0].double()},
            {6: 5},
            {9: -1},
        ),
    ],
    bad_arguments=[
        *bad(
            "layer_norm",
            (TypeError, "input must be a Tensor, got list", ([1.0], (1,))),
            (ValueError, r"input must have shape \(\*, 4\), got \(2, 3\)", (torch.ones(2, 3), (4,))),
            (RuntimeError, r"input must have shape \(\*, 2, 3\), got \(3,\)", (torch.ones(3), (2, 3))),
            (ValueError, r"weight must have shape \(3,\)", (torch.ones(2, 3), (3,), torch.ones(2))),
            (TypeError, "input must be a floating.*int64", (torch.ones(2, 3).long(), (3,))),
            (ValueError, "activation must be None", (torch.ones(2, 3), (3,)), {"activation": "rleu"}),
        ),
        *bad(
            "group_norm",
            (TypeError, "input must be a Tensor, got list", ([1.0], 1)),
            (RuntimeError, "num_groups must be a divisor .* got 2 and", (torch.ones(2, 3), 2)),
            (ValueError, "num_groups must be a divisor .* got 0 and", (torch.ones(2, 3), 0)),
            (ValueError, "num_groups must be a divisor", (torch.ones(3), 1)),
            (ValueError, r"bias must have shape \(3,\)", (torch.ones(2, 3, 4), 3, None, torch.ones(2))),
        ),
        *bad(
            "instance_norm",
            (TypeError, "input must be a Tensor, got list", ([1.0],)),
            (
                ValueError,
                "input must have .* with more than one element in a channel",
                (torch.ones(2, 3, 1),),
            ),
            (
                RuntimeError,
                "weight must be on cpu",
                (torch.ones(2, 3, 4), None, None, torch.ones(3, device="meta")),
            ),
        ),
    ],
)

LAYERS = {
    "LayerNorm": [{"normalized_shape": 4}, {"normalized_shape": (4,), "bias": False, "eps": 1e-3}],
    "GroupNorm": [
        {"num_groups": 1, "num_channels": 4},
        {"num_groups": 1, "num_channels": 4, "affine": False},
    ],
    "InstanceNorm2d": [{"num_features": 6}, {"num_features": 6, "affine": True, "track_running_stats": True}],
}


def valid_arguments() -> dict[str, tuple]:
    x, weight = torch.randn(4, 6), torch.rand(6)
    mean, rstd = torch.randn(4), torch.rand(4)
    return {
        "layer_norm_forward": (x, weight, weight, 6, 1, 1, 1e-5, 1, 0.0, 0.0),
        "layer_norm_backward": (x, x, weight, weight, mean, rstd, 6, 1, 1, 1, 0.0, 0.0, True),
    }


CUDA_CODE = {"layer_norm": [PACKS]}


def _triton(shape: tuple[int, ...], inner: int, groups: int, kind: int, dtype: torch.dtype) -> None:
    from pyops.triton_kernels import layer_norm as kernels

    x = meta(*shape, dtype=dtype)
    acc = F64 if dtype is F64 else F32
    size = shape[1]
    weight, mean = meta(size // inner * groups, dtype=acc), meta(shape[0], dtype=acc)
    kernels.layer_norm_forward(x, weight, weight, size, inner, groups, 1e-5, kind, 0.0, 0.0)
    kernels.layer_norm_backward(x, x, weight, weight, mean, mean, size, inner, groups, kind, 0.0, 0.0, True)


TRITON_CASES = {
    "layer_norm-bfloat16": lambda: _triton((4096, 1024), 1, 1, 0, BF16),
    "layer_norm-groups-silu": lambda: _triton((64, 100_352), 3136, 8, 10, F32),
    "layer_norm-odd-float64": lambda: _triton((77, 1001), 1, 1, 1, F64),
}


MUTANTS = {
    "layer_norm_gradient_forgets_the_mean_of_products": Mutant(
        "math/layer_norm.h",
        "(grad - mean_grad - standardized * mean_product)",
        "(grad - mean_grad)",
        ("layer_norm",),
    ),
    "layer_norm_takes_the_first_groups_weights_for_all": Mutant(
        "cpu/layer_norm.cpp",
        "const int64_t at = row * s.size, first = row % s.groups * s.channels();\n      const auto found",
        "const int64_t at = row * s.size, first = 0;\n      const auto found",
        ("layer_norm",),
    ),
    "layer_norm_counts_lanes_behind_the_end_of_a_row": Mutant(
        "cpu/layer_norm.cpp",
        "const V d = load_lanes(x + i, lanes, near) - V(near);",
        "const V d = load_lanes(x + i, lanes) - V(near);",
        ("layer_norm",),
    ),
}  # fmt: skip
