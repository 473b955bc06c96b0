"""Arguments that nobody should pass: what takes the place of a good one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.suite import layouts

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool]
RARE_DTYPES = [torch.complex64, torch.complex128, torch.int8, torch.uint8, torch.uint16, torch.float8_e4m3fn]
SHAPES = [(), (0,), (1,), (3,), (5,), (3, 5), (5, 3), (0, 5), (3, 0), (3, 5, 2), (2, 3), (2, 0)]
SHAPES += [(1, 1, 1, 1), (2, 4, 5, 6), (0, 3, 4, 4), (2, 3, 4, 5, 2), (1,) * 9]
INTEGERS = [-(2**63), -(2**31) - 1, -100, -3, -1, 0, 1, 2, 3, 4, 5, 2**31, 2**60, 2**63 - 1]
FLOATS = [-1.0, 0.0, 0.1, 1.0, 1.5, float("nan"), float("inf"), -float("inf"), -1e300, 1e-320]
#: Nothing that a function of tensors and numbers can be called with.
THINGS: list[Callable[[], Any]] = [
    lambda: None, lambda: "relu", lambda: "", lambda: "sum", lambda: b"mean", list, dict,
    lambda: object(), lambda: 1j, lambda: 2**70, lambda: -(2**70), lambda: (1, 2, 3), lambda: [1.5],
    lambda: (None,), lambda: torch.float32, lambda: torch.device("meta"), lambda: float, lambda: {"a": 1},
    lambda: True, lambda: slice(1), lambda: torch.Generator(), lambda: [torch.ones(2)], lambda: "\0é" * 50,
]  # fmt: skip

_SPECIAL = [float("nan"), float("inf"), -float("inf"), 3e38, -7, 4, 5, 100, 2**62, -(2**63)]


def overlapping(t: Tensor) -> Tensor:
    """The shape of ``t`` over memory in which neighbours share elements."""
    if t.dim() == 0 or t.numel() == 0:
        return t
    return torch.as_strided(t.reshape(-1).clone(), t.shape, (1,) * t.dim()) if t.numel() > sum(t.shape) else t


_LAYOUTS = [*layouts.LAYOUTS.values(), overlapping]


def _quantised(t: Tensor) -> Tensor:
    return torch.quantize_per_tensor(t.float(), 0.1, 3, torch.quint8)


def _nested(t: Tensor, layout: torch.layout = torch.strided) -> Tensor:
    rows = t.float().reshape(-1, t.shape[-1] if t.dim() else 1)
    return torch.nested.nested_tensor([rows, rows[:1]], layout=layout)


def _inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


#: Tensors of other kinds with the shape of one; where there is none the plain one is taken.
KINDS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.to("meta"),
    lambda t: t.to(torch.complex64).conj(),
    lambda t: torch._neg_view(t),
    lambda t: t.to_sparse(),
    lambda t: t.to_sparse_csr(),
    lambda t: t.float().to_mkldnn(),
    _quantised,
    _nested,
    lambda t: _nested(t, torch.jagged),
    _inference,
    lambda t: torch.nn.Parameter(t.float()),
    lambda t: t.float().requires_grad_() * 2,
    lambda t: torch.nn.parameter.UninitializedParameter(),
]


def random_tensor(rng: random.Random, like: Tensor | None = None) -> Tensor:
    """Any tensor; of the shape or the dtype of ``like``, or both, more often than by chance."""
    near = like is not None and like.layout is torch.strided and not like.is_nested
    shape = tuple(like.shape) if near and rng.random() < 0.4 else rng.choice(SHAPES)
    dtype = like.dtype if near and rng.random() < 0.6 else rng.choice(DTYPES + RARE_DTYPES[:2])
    tensor = torch.ones(shape).to(rng.choice(RARE_DTYPES) if rng.random() < 0.05 else dtype)
    if rng.random() < 0.3 and tensor.dtype is not torch.float8_e4m3fn:
        tensor = torch.full_like(tensor, rng.choice(_SPECIAL), dtype=torch.float64).to(tensor.dtype)
    if rng.random() < 0.3:
        tensor = rng.choice(_LAYOUTS)(tensor)
    if rng.random() < 0.15:
        try:
            return rng.choice(KINDS)(tensor)
        except (RuntimeError, TypeError, ValueError, IndexError):  # there is none of that kind
            return tensor
    return tensor


def spoiled(rng: random.Random, value: Any) -> Any:
    """Something else in the place of ``value``, mostly of its kind: a tensor of another shape, dtype, layout
    or device, an integer out of range, a float that is no number."""
    if rng.random() < 0.15:
        return rng.choice(THINGS)()
    if isinstance(value, (list, tuple)):
        changed = [spoiled(rng, v) if rng.random() < 0.5 else v for v in value]
        # Sizes of a shape: large ones would be allocated and filled before anything can be wrong with them.
        if any(type(v) is int and v >= 2**31 for v in changed):
            changed = list(value)
        return type(value)(changed[: rng.choice([1, 3, 3])]) if type(value) in (list, tuple) else changed
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(INTEGERS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, torch.dtype):
        return rng.choice(DTYPES + RARE_DTYPES)
    if isinstance(value, str):
        return rng.choice(["", "mean", "none", "sum", "relu", "gelu", "Mean", "same", "nearest", "cubic"])
    if isinstance(value, Tensor):
        return random_tensor(rng, value)
    return random_tensor(rng) if rng.random() < 0.5 else rng.choice(THINGS)()
