"""``python -m tests.suite.smoke [BACKEND]``: a few seconds' check of every op, for processes made to order.

test_isa_variants.py runs it with each instruction-set variant, test_mutation.py with broken libraries. It
runs cases of the suite through the checks of the suite, prints what fails and then exits with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch

import pyops

from . import checks
from .backends import BACKENDS, Backend, activate, raw
from .cases import Case, loss_case, normal, uniform

# Both end inside a vector of every variant (4 to 16 lanes): 37 classes, and 29 rows side by side.
ROWS, STRIDED = (9, 37), (2, 5, 29)


def softmax_case(op: str, shape: tuple[int, ...]) -> Case:
    return Case(f"{op}_{shape}", op, lambda g: {"input": normal(g, shape)}, {"dim": 1})


def linear_case(**options) -> Case:
    def make(generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {
            "input": normal(generator, (21, 17), 1.0),
            "linear_weight": normal(generator, (37, 17), 1.0),
            "target": torch.randint(0, 37, (21,), generator=generator),
            "linear_bias": uniform(generator, (37,)),
        }

    return Case("linear", "linear_cross_entropy", make, {"chunk_size": 8, **options})


def below_zero(logits: torch.Tensor) -> torch.Tensor:
    return logits - 300.0


CASES = [
    softmax_case("softmax", ROWS),
    softmax_case("softmax", STRIDED),
    softmax_case("log_softmax", ROWS),
    softmax_case("log_softmax", STRIDED),
    linear_case(),
    linear_case(reduction="none"),
    *(
        loss_case(op, f"{op}_{name}_{shape}", shape, **options)
        for shape in (ROWS, STRIDED)
        for op, name, options in [
            ("nll_loss", "mean", {"weight": True, "ignored": 1}),
            ("nll_loss", "none", {"reduction": "none", "ignored": 1}),
            ("cross_entropy", "mean", {"weight": True, "ignored": 1}),
            ("cross_entropy", "none", {"reduction": "none", "ignored": 255}),
            ("cross_entropy", "smoothing", {"weight": True, "ignored": 1, "label_smoothing": 0.2}),
            ("cross_entropy", "soft", {"probability_target": True, "label_smoothing": 0.2, "weight": True}),
            ("cross_entropy", "extras", {"z_loss": 0.1, "sample_weight": True, "return_lse": True}),
            ("cross_entropy", "below_zero", {"change": below_zero}),
        ]
    ),
]


def check_gemm(backend: Backend) -> None:
    a, b = torch.randn(67, 70, dtype=torch.float64), torch.randn(70, 131, dtype=torch.float64)
    out = torch.empty(67, 131, dtype=torch.float64)
    raw(backend, "gemm_")(out, a, b, 0.0)
    assert torch.allclose(out, a @ b, rtol=1e-12, atol=1e-12)


def check_ignored_row_of_nan(backend: Backend) -> None:
    for shape in (ROWS, STRIDED):
        logits = torch.full(shape, torch.nan, requires_grad=True)
        target = torch.full((shape[0], *shape[2:]), -100)
        loss = pyops.functional.cross_entropy(logits, target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0
        assert (gradient == 0).all()


def all_checks(backend: Backend) -> Iterator[tuple[str, Callable[[], None]]]:
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            yield f"{case}_{dtype}", lambda c=case, d=dtype: checks.check_accuracy(c, backend, d)
    yield "gemm", lambda: check_gemm(backend)
    yield "ignored_row_of_nan", lambda: check_ignored_row_of_nan(backend)


def failures(backend: Backend, at_most: int | None = None) -> list[str]:
    """Names of the checks that fail, or of the first ``at_most`` of them."""
    activate(backend)
    torch.set_num_threads(1)  # others run beside this process
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is NaN
    failed = []
    with pyops.use_backend(backend.name):
        for name, check in all_checks(backend):
            torch.manual_seed(0)
            try:
                check()
            except (AssertionError, RuntimeError):
                failed.append(name)
            if len(failed) == at_most:
                break
    return failed


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "cpp"
    failed = failures(next(b for b in BACKENDS if str(b) == wanted))
    print("\n".join(failed))
    sys.exit(bool(failed))
