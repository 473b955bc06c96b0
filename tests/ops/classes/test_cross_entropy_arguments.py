"""What cross_entropy refuses: bad arguments by their names, and what raw ops must not read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyops.functional import cross_entropy
from tests.suite import checks
from tests.suite.backends import Backend, raw

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

_X, _Y = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
_ERRORS = {
    "reduction": (ValueError, "reduction must be .*'meen'", {"reduction": "meen"}),
    "reduction_none": (ValueError, "reduction must be", {"reduction": None}),
    "scalar_input": (ValueError, "input must have at least one dimension", {"input": torch.zeros(())}),
    "integer_input": (TypeError, "input must be a floating.*got torch.int64", {"input": _X.long()}),
    "input_is_no_tensor": (TypeError, "input must be a Tensor, got list", {"input": [1.0]}),
    "target_is_no_tensor": (TypeError, "target must be a Tensor, got int", {"target": 3}),
    "target_rank": (ValueError, r"target must have shape \(3,\).*got \(3, 1\)", {"target": _Y[:, None]}),
    "target_rows": (ValueError, r"target must have shape \(3,\).*got \(2,\)", {"target": _Y[:2]}),
    "target_dtype": (TypeError, "target must hold int64.*got torch.int32", {"target": _Y.int()}),
    "probabilities_dtype": (TypeError, ".*class probabilities.*floating-point", {"target": _X.long()}),
    "probabilities_and_ignore_index": (
        ValueError, "ignore_index is not supported for class prob", {"target": _X, "ignore_index": 1},
    ),
    "weight_shape": (ValueError, r"weight must have shape \(5,\).*got \(4,\)", {"weight": torch.ones(4)}),
    "weight_rank": (ValueError, r"weight must have shape \(5,\)", {"weight": torch.ones(1, 5)}),
    "weight_dtype": (TypeError, "weight must be a floating", {"weight": torch.ones(5, dtype=torch.int64)}),
    "sample_weight_shape": (
        ValueError, r"sample_weight must have shape \(3,\).*got \(4,\)", {"sample_weight": torch.ones(4)},
    ),
    "sample_weight_dtype": (TypeError, "sample_weight must be a floating", {"sample_weight": _Y}),
    "smoothing_above_1": (ValueError, "label_smoothing.*0 and 1, got 1.5", {"label_smoothing": 1.5}),
    "smoothing_below_0": (ValueError, "label_smoothing.*0 and 1, got -0.1", {"label_smoothing": -0.1}),
    "smoothing_nan": (ValueError, "label_smoothing.*0 and 1, got nan", {"label_smoothing": float("nan")}),
    "target_device": (RuntimeError, "target must be on cpu.*got meta", {"target": _Y.to("meta")}),
    "weight_device": (RuntimeError, "weight must be on cpu.*got meta", {"weight": _X[0].to("meta")}),
    "sample_weight_device": (
        RuntimeError, "sample_weight must be on cpu.*got meta", {"sample_weight": _X[:, 0].to("meta")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _ERRORS)
def test_bad_argument_is_named(name: str) -> None:
    error, message, change = _ERRORS[name]
    with pytest.raises(error, match=f"cross_entropy: {message}"):
        cross_entropy(**{"input": _X, "target": _Y, **change})


def test_meta_tensors_give_shapes() -> None:
    logits = torch.empty(3, 5, device="meta", requires_grad=True)
    loss = cross_entropy(logits, torch.empty(3, dtype=torch.int64, device="meta"))
    loss.backward()
    assert logits.grad.shape == (3, 5)


# ------------------------------------------------------------------------------------------------- raw ops


def _raw_arguments(device: str) -> dict[str, object]:
    stats = torch.zeros(2, 3, device=device)
    return {
        "grad_loss": torch.ones((), device=device),
        "grad_lse": None,
        "logits": torch.zeros(3, 5, device=device),
        "target": torch.zeros(3, dtype=torch.int64, device=device),
        "weight": None,
        "sample_weight": None,
        "stats": stats,
        "divisor": torch.ones((), device=device),
        "reduction": 1,
        "ignore_index": -100,
        "label_smoothing": 0.0,
        "z_loss": 0.0,
    }


_BAD_RAW = {
    "scalar_logits": {"logits": torch.zeros(())},
    "integer_logits": {"logits": torch.zeros(3, 5, dtype=torch.int64)},
    "complex_logits": {"logits": torch.zeros(3, 5, dtype=torch.complex64)},
    "strided_logits": {"logits": torch.zeros(5, 3).t()},
    "short_target": {"target": torch.zeros(2, dtype=torch.int64)},
    "int32_target": {"target": torch.zeros(3, dtype=torch.int32)},
    "strided_target": {"target": torch.zeros(6, dtype=torch.int64)[::2]},
    "probabilities_of_another_shape": {"target": torch.zeros(3, 4)},
    "probabilities_of_another_dtype": {"target": torch.zeros(3, 5, dtype=torch.float64)},
    "short_weight": {"weight": torch.zeros(4)},
    "double_weight": {"weight": torch.zeros(5, dtype=torch.float64)},
    "strided_weight": {"weight": torch.zeros(10)[::2]},
    "short_sample_weight": {"sample_weight": torch.zeros(2)},
    "half_sample_weight": {"sample_weight": torch.zeros(3, dtype=torch.float16)},
    "reduction_3": {"reduction": 3},
    "reduction_negative": {"reduction": -1},
    "smoothing": {"label_smoothing": 2.0},
}
_BAD_RAW_BACKWARD = {
    **_BAD_RAW,
    "grad_loss_of_a_row": {"grad_loss": torch.ones(3)},
    "grad_loss_scalar_for_rows": {"reduction": 0},
    "double_grad_loss": {"grad_loss": torch.ones((), dtype=torch.float64)},
    "short_grad_lse": {"grad_lse": torch.ones(2)},
    "short_stats": {"stats": torch.zeros(2, 2)},
    "flat_stats": {"stats": torch.zeros(6)},
    "double_stats": {"stats": torch.zeros(2, 3, dtype=torch.float64)},
    "strided_stats": {"stats": torch.zeros(3, 2).t()},
    "divisor_of_one_element": {"divisor": torch.ones(1)},
    "double_divisor": {"divisor": torch.ones((), dtype=torch.float64)},
}
_FORWARD_ARGUMENTS = (
    "logits", "target", "weight", "sample_weight", "reduction", "ignore_index", "label_smoothing", "z_loss",
)  # fmt: skip


def _to(value: object, device: str) -> object:
    return checks.on_device({"": value}, device)[""] if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", _BAD_RAW)
def test_raw_forward_refuses(kernels: Backend, name: str) -> None:
    change = {k: _to(v, kernels.device) for k, v in _BAD_RAW[name].items()}
    arguments = _raw_arguments(kernels.device) | change
    with pytest.raises(RuntimeError, match="cross_entropy_forward"):
        raw(kernels, "cross_entropy_forward")(*[arguments[k] for k in _FORWARD_ARGUMENTS])


@pytest.mark.parametrize("op", ["cross_entropy_backward", "cross_entropy_backward_"])
@pytest.mark.parametrize("name", _BAD_RAW_BACKWARD)
def test_raw_backward_refuses(kernels: Backend, name: str, op: str) -> None:
    change = {k: _to(v, kernels.device) for k, v in _BAD_RAW_BACKWARD[name].items()}
    with pytest.raises(RuntimeError, match="cross_entropy_backward"):
        raw(kernels, op)(*(_raw_arguments(kernels.device) | change).values())


def test_raw_backward_reads_nothing_outside_for_a_bad_target(kernels: Backend) -> None:
    arguments = _raw_arguments(kernels.device)
    arguments["target"] = torch.tensor([0, 2**40, -7], device=kernels.device)
    gradient = raw(kernels, "cross_entropy_backward")(*arguments.values())
    assert gradient[0].isfinite().all()
    assert gradient[1:].isnan().all()
