"""Random legal calls of every op against the float64 reference, and what must not change their results.

``make test`` runs the same examples every time, in float64 on the CPU; ``make nightly`` runs :data:`MANY` new
ones per op (PYOPS_EXAMPLES sets another number). What fails is printed as code, with the line that makes it
again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.suite import checks
from tests.suite.backends import CPP
from tests.suite.cases import Case
from tests.suite.layouts import LAYOUTS

from .strategies import STRATEGIES

pytestmark = [
    pytest.mark.usefixtures("nan_filled_memory", "cpp"),
    pytest.mark.filterwarnings("ignore:Using a target size", "ignore:RNN module weights"),
]

MANY = int(os.environ.get("PYOPS_EXAMPLES", "2000"))
#: Examples of every op in `make test`.
EACH = 100
_DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
_LAYOUTS = st.sampled_from([None, None, *LAYOUTS])
_UPSTREAM = st.sampled_from([None, None, checks.strided_upstream, checks.expanded_upstream])
#: Rows of equal numbers have no deviation, and then the gradient is a difference of large numbers.
_NOT_EXPANDED = {"batch_norm", "layer_norm", "group_norm", "instance_norm"}
#: Of equal pixels the largest sum of a window is a matter of rounding.
_NOT_EXPANDED |= {"conv2d_max_pool2d"}
#: Masks follow the memory of a tensor that is dense in another order, which the reference does not look at.
_CONTIGUOUS = {"dropout", "fused_dropout"}


def as_code(case: Case, tensors: dict[str, Tensor]) -> str:
    """The call as a user would write it; large tensors are drawn anew."""
    lines = []
    for name, t in tensors.items():
        values = f"tensor({t.tolist()}, dtype={t.dtype})" if t.numel() <= 64 else f"randn({tuple(t.shape)})"
        strides = "" if t.is_contiguous() else f"  # strides {t.stride()}"
        lines.append(f"{name} = torch.{values}{strides}")
    words = [*(f"{n}={n}" for n in tensors), *(f"{k}={v!r}" for k, v in case.options.items())]
    return "\n".join([*lines, f"F.{case.op}({', '.join(words)})"])


def choices(ops: Iterable[str]) -> list[Any]:
    """Each of ``ops`` with few examples, and nightly with many."""
    many = [pytest.param(op, True, marks=pytest.mark.nightly, id=f"{op}-many") for op in ops]
    return [*(pytest.param(op, False, id=op) for op in ops), *many]


def run_examples(test: Callable[..., None], op: str, nightly: bool, share: int = 1, **draws: Any) -> None:
    """``test(case, **draws)`` of many examples of ``op``; every ``share``-th of their number."""
    number = MANY if nightly else EACH
    chosen = settings(
        max_examples=max(number // share, 5),
        deadline=None,
        derandomize=not nightly,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    chosen(given(case=STRATEGIES[op], **draws)(test))()


@pytest.mark.parametrize(("op", "nightly"), choices(STRATEGIES))
def test_results_are_those_of_the_reference(op: str, nightly: bool) -> None:
    def check(case: Case, dtype: torch.dtype, layout: str | None, upstream: Any) -> None:
        if (layout == "expanded" and op in _NOT_EXPANDED) or (layout != "offset" and op in _CONTIGUOUS):
            layout = None
        if op in _NOT_EXPANDED and upstream is checks.expanded_upstream:
            upstream = None  # its gradients are sums of deviations, which are 0
        tensors = case.tensors(dtype)
        if layout == "expanded" and "batch_sizes" in tensors:
            layout = None  # it would change the sizes
        note(as_code(case, {k: LAYOUTS[layout](t) if layout else t for k, t in tensors.items()}))
        checks.check_accuracy(case, CPP, dtype, layout=layout, upstream_layout=upstream, by_chance=True)

    # How exact 16 and 32 bits are depends on the machine's vectors: `make test` must not.
    dtypes = _DTYPES if nightly else st.just(torch.float64)
    run_examples(check, op, nightly, dtype=dtypes, layout=_LAYOUTS, upstream=_UPSTREAM)
