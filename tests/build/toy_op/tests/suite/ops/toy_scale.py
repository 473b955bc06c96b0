"""toy_scale for the shared suite."""

from __future__ import annotations

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal
from ..contract import Contract, bad
from ..triton_cases import meta


def toy_scale(input: Tensor, factor: float = 2.0) -> Tensor:
    return input * factor


OPS = {"toy_scale": Op(F.toy_scale, toy_scale, toy_scale, ("input",))}


def case(shape: tuple[int, ...]) -> Case:
    def make(generator: torch.Generator) -> dict[str, Tensor]:
        return {"input": normal(generator, shape)}

    return Case(f"toy_scale_{'x'.join(map(str, shape))}", "toy_scale", make, {"factor": 3.0})


SMOKE = [case((9, 43))]

CONTRACT = Contract(
    small=[case((4, 7))],
    raw_op_refuses=[("toy_scale", (torch.zeros(3).long(), 2.0))],
    bad_arguments=bad("toy_scale", (TypeError, "input must be a Tensor, got list", ([1.0],))),
)


def valid_arguments() -> dict[str, tuple]:
    return {"toy_scale": (torch.randn(3, 5), 2.0)}


def _triton() -> None:
    from pyops.triton_kernels.toy_scale import toy_scale

    toy_scale(meta(1001, 77), 2.0)


TRITON_CASES = {"toy_scale-float32": _triton}
