"""prelu for the shared suite."""

from __future__ import annotations

import torch
from torch import Tensor

from pyops import functional as F

from ..cases import Case, Op, normal, uniform
from ..mutants import Mutant


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


def valid_arguments() -> dict[str, tuple]:
    x, weight = torch.randn(3, 5), torch.rand(5)
    return {"prelu_forward": (x, weight, 1), "prelu_backward": (x, x, weight, 1)}


MUTANTS = {
    "prelu_slope_gradient_forgets_the_input": Mutant(
        "math/prelu.h", "V(0), x * grad)", "V(0), grad)", ("prelu",)
    ),
    "prelu_rows_of_slopes_ignore_the_pixels": Mutant(
        "cpu/prelu.cpp", "weight[i % period / s.inner]", "weight[i % s.channels]", ("prelu",)
    ),
}
