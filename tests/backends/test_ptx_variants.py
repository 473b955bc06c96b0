"""Kernels that no case of the shared suite reaches in its dtypes: instances of templates, each of which nvcc
has compiled by itself."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

import pyops
from pyops import kinds
from tests.ptx_machine import nvcc
from tests.suite import checks
from tests.suite.backends import BACKENDS, activate, raw
from tests.suite.cases import DTYPES, Case
from tests.suite.ops import (
    MODULES,
    OPS,
    avg_pool2d,
    conv2d,
    conv2d_max_pool2d,
    dropout,
    embedding,
    max_pool2d,
    recurrent,
    softmax,
)
from tests.suite.triton_cases import fp32_precision

EMULATED, PTX = (next(b for b in BACKENDS if b.name == name) for name in ("emulated", "ptx"))
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64

pytestmark = [
    pytest.mark.skipif(nvcc.missing_reason() is not None, reason=str(nvcc.missing_reason())),
    pytest.mark.usefixtures("nan_filled_memory"),
]

#: More units than a block has room for: of the cooperative loop, and with rows of odd bytes, step by step.
_MANY = {F32: 168, BF16: 232, F16: 232}


def with_narrow_indices(case: Case) -> Case:
    def make(generator: torch.Generator) -> dict[str, torch.Tensor]:
        tensors = case.make(generator)
        return {**tensors, "input": tensors["input"].int()}

    return dataclasses.replace(case, id=f"{case.id}_int32", make=make)


def cases() -> Iterator[tuple[Case, Iterable[torch.dtype]]]:
    for module in MODULES:
        for case in getattr(module, "SMOKE", ()):
            yield case, (BF16, F16, F64)
    packs = {"shape": (1, 16, 18, 19), "nhwc": True}
    for kernel in (2, 3, (3, 2), (16, 17)):
        yield max_pool2d.case(f"packs_{kernel}", kernel_size=kernel, stride=1, **packs), DTYPES
    yield avg_pool2d.case("avg_pool2d", "packs", kernel_size=3, stride=2, padding=1, **packs), DTYPES
    yield avg_pool2d.case("adaptive_avg_pool2d", "packs", output_size=(3, 4), **packs), DTYPES
    depthwise = conv2d.case("packs", (1, 16, 6, 7), 16, 3, groups=16, padding=1)
    yield depthwise.in_layout("channels_last"), DTYPES
    yield dropout.fused_case((5, 96), None), DTYPES
    for op in softmax.OPS:
        yield softmax._case(op, (2, 20011)), DTYPES
    for dim in (1, 16, 37):
        yield with_narrow_indices(embedding.case("narrow", 9, dim, (5, 7))), DTYPES
    for op in recurrent.GATES:
        for dtype, hidden in _MANY.items():
            if op != "rnn_relu" or dtype == F32:  # in 16 bits a rounding decides whether units are 0
                yield recurrent.case("grid", op, 2, 3, 2, hidden), (dtype,)
                yield recurrent.case("steps", op, 2, 3, 2, hidden - 1), (dtype,)


_ALL = [
    pytest.param(case, dtype, id=f"{case}-{str(dtype).removeprefix('torch.')}")
    for case, dtypes in cases()
    for dtype in dtypes
]


@pytest.mark.parametrize(("case", "dtype"), _ALL)
def test_accuracy(case: Case, dtype: torch.dtype) -> None:
    activate(PTX)
    with pyops.use_backend("ptx"):
        checks.check_accuracy(case, PTX, dtype)


def relative_errors(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Of each result, the norm of its error relative to its own."""
    op, tensors = OPS[case.op], case.tensors(dtype)
    wanted = checks.run(op.formula, case, {k: t.double() for k, t in tensors.items()})
    with pyops.use_backend("ptx"):
        found = checks.run(op.pyops, case, tensors)
    return {
        name: float((value.double() - wanted[name]).norm() / wanted[name].norm())
        for name, value in found.items()
    }


@pytest.mark.parametrize("op", recurrent.GATES)
def test_recurrent_layers_in_tf32(op: str) -> None:
    activate(PTX)
    with fp32_precision(torch.backends.cudnn.rnn, "tf32"):
        errors = relative_errors(recurrent.case("tf32", op, 2, 3, 2, _MANY[F32]), F32)
    assert max(errors.values()) < 2**-8


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("odd", [False, True])
def test_relu_layers_of_16_bits(odd: bool, dtype: torch.dtype) -> None:
    activate(PTX)
    errors = relative_errors(recurrent.case("relu", "rnn_relu", 2, 3, 2, _MANY[dtype] - odd), dtype)
    assert max(errors.values()) < 2**-4


@pytest.mark.parametrize("case", conv2d_max_pool2d.SMOKE, ids=str)
def test_pooled_convolutions_in_tf32(case: Case) -> None:
    activate(PTX)
    with fp32_precision(torch.backends.cudnn.conv, "tf32"):
        assert relative_errors(case, F32)["output 0"] < 2**-8


def equal_on_both(op: str, *arguments: Any, dtype: torch.dtype) -> torch.Tensor:
    """What the raw ``op`` returns, or writes to its first argument, which the emulator finds, too."""
    results = []
    for backend in (EMULATED, PTX):
        copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        returned = raw(backend, op)(*copies)
        results.append(copies[0] if op.endswith("_") else returned)
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    return results[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", kinds.ACTIVATIONS)
def test_activations_by_their_input_and_by_their_output(kind: int, dtype: torch.dtype) -> None:
    activate(EMULATED)
    activate(PTX)
    x, grad = torch.randn(33, 7).to(dtype), torch.randn(33, 7).to(dtype)
    for alpha in (0.3, -0.3):
        y = equal_on_both("activation_forward", x, kind, alpha, 1.0, dtype=dtype)
        equal_on_both("activation_backward", grad, x, kind, alpha, 1.0, False, dtype=dtype)
        with contextlib.suppress(RuntimeError):  # of some kinds the output does not tell
            equal_on_both("activation_backward", grad, y, kind, alpha, 1.0, True, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.0, float("inf"), -float("inf")])
def test_norms_of_embeddings(p: float, dtype: torch.dtype) -> None:
    activate(EMULATED)
    activate(PTX)
    weight, index = (torch.randn(9, 37) * 5).to(dtype), torch.tensor([5, 0, 5, 2, 2])
    equal_on_both("embedding_renorm_", weight, index, 1.0, p, dtype=dtype)
