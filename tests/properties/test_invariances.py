"""What must not change results: order and parts of the batch, and a shift of logits; and what scale does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, note
from hypothesis import strategies as st
from torch import Tensor

from tests.suite.cases import Case
from tests.suite.ops import OPS
from tests.suite.ops.activation import FORMULAS as ACTIVATIONS

from .test_properties import as_code, choices, run_examples

pytestmark = pytest.mark.usefixtures("cpp")

_POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
_CLASSES = ("softmax", "log_softmax", "cross_entropy", "nll_loss")
_NORMS = ("layer_norm", "group_norm", "instance_norm")
_LOSSES = ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")
#: Ops whose rows, along the first dimension, have nothing to do with each other.
BY_ROWS = [*ACTIVATIONS, *_POOLS, *_CLASSES, *_NORMS, *_LOSSES, "conv1d", "conv2d"]
BY_ROWS += ["conv2d_max_pool2d", "linear"]
BY_ROWS += ["interpolate", "embedding", "prelu"]
#: The arguments that have these rows.
_WITH_ROWS = ("input", "target", "residual", "sample_weight")


def result(case: Case, tensors: dict[str, Tensor], **options: Any) -> Tensor:
    """The output, or the first of them."""
    found = OPS[case.op].pyops(**tensors, **{**case.options, **options})
    return found[0] if isinstance(found, tuple) else found


def has_rows(case: Case, tensors: dict[str, Tensor]) -> bool:
    """Whether the first dimension of the input is one of rows, more than one."""
    x = tensors["input"]
    if case.options.get("reduction", "none") != "none" or x.dim() < 2 or x.shape[0] < 2 or x.numel() == 0:
        return False
    if case.op in _LOSSES:
        return "weight" not in tensors
    if case.op == "layer_norm":
        return len(case.options["normalized_shape"]) < x.dim()
    if case.op in ("softmax", "log_softmax"):
        return case.options["dim"] % x.dim() != 0
    return not case.options.get("scale_grad_by_freq")


@pytest.mark.parametrize(("op", "nightly"), choices(BY_ROWS))
def test_order_and_parts_of_the_batch_do_not_matter(op: str, nightly: bool) -> None:
    def check(case: Case, at: float, seed: int) -> None:
        tensors = case.tensors(torch.float64)
        assume(has_rows(case, tensors))
        note(as_code(case, tensors))
        whole, rows = result(case, tensors), tensors["input"].shape[0]
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        cut = 1 + int(at * (rows - 1))
        for part in (order, torch.arange(cut), torch.arange(cut, rows)):
            picked = {k: t[part] if k in _WITH_ROWS else t for k, t in tensors.items()}
            torch.testing.assert_close(result(case, picked), whole[part], rtol=1e-10, atol=1e-12)

    run_examples(check, op, nightly, 10, at=st.floats(0, 0.99), seed=st.integers(0, 99))


@pytest.mark.parametrize(("op", "nightly"), choices(["softmax", "log_softmax", "cross_entropy"]))
def test_a_shift_of_the_logits_does_not_matter(op: str, nightly: bool) -> None:
    def check(case: Case, shift: float) -> None:
        assume(not case.options.get("z_loss") and not case.options.get("return_lse"))
        tensors = case.tensors(torch.float64)
        note(as_code(case, tensors))
        moved = {**tensors, "input": tensors["input"] + shift}
        torch.testing.assert_close(
            result(case, moved), result(case, tensors), rtol=1e-9, atol=1e-9, equal_nan=True
        )

    run_examples(check, op, nightly, 10, shift=st.sampled_from([-1000.0, -3.0, 100.0, 1e4]))


#: By op, the arguments of which a multiple gives that multiple of the result.
_SCALED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", *_POOLS, "interpolate"), ("input",)),
    "embedding": ("weight",),
    "l1_loss": ("input", "target"),
    "linear": ("input", "bias"),
    **dict.fromkeys(("conv1d", "conv2d"), ("weight", "bias", "residual")),
}


@pytest.mark.parametrize(("op", "nightly"), choices(_SCALED))
def test_a_power_of_two_goes_through_exactly(op: str, nightly: bool) -> None:
    def check(case: Case, power: int) -> None:
        assume(case.options.get("activation") in (None, "relu", "leaky_relu"))
        tensors = case.tensors(torch.float32)
        note(as_code(case, tensors))
        scaled = {k: t * 2.0**power if k in _SCALED[op] else t for k, t in tensors.items()}
        assert torch.equal(result(case, scaled), result(case, tensors) * 2.0**power)

    run_examples(check, op, nightly, 10, power=st.integers(-8, 8))
