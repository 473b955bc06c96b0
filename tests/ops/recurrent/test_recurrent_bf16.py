"""Recurrent layers in bfloat16, whose matrices are packed in pairs where the CPU multiplies those."""

from __future__ import annotations

import pytest
import torch

import pyops
from tests.suite import checks
from tests.suite.backends import CPP, Backend
from tests.suite.cases import Case, sweep
from tests.suite.ops.recurrent import OPS, case
from tests.suite.processes import run_python

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

# Odd units, inputs and sequences: terms without a partner, and pairs of two steps' rows; the GRU's gates are
# turned, and its last gate's first term is a pair with the one before. Whole tiles. Small layers of many
# sequences, whose gradients are formed chunk by chunk, 256 rows at a time.
_CASES = [
    case("pairs", "lstm", 3, 5, 3, 67, sizes=(5, 3, 1), bidirectional=True),
    case("pairs", "gru", 4, 3, 5, 21),
    case("pairs", "gru", 3, 17, 33, 64, sizes=(17, 16, 3)),
    case("pairs", "rnn_tanh", 3, 33, 19, 35),
    case("pairs_in_chunks", "lstm", 11, 70, 3, 5, sizes=(70,) * 7 + (33, 31, 2, 1)),
    case("pairs_in_chunks", "gru", 9, 67, 4, 9),
    case("pairs_in_blocks", "rnn_relu", 2, 16, 4, 1100),
]


@sweep(_CASES, [torch.bfloat16], [CPP])
def test_accuracy(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@pytest.mark.parametrize("op", ["lstm", "gru"])
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count(op: str) -> None:
    sized = case("threads", op, 5, 39, 7, 33, sizes=(39, 37, 20, 11, 2))

    def bits(threads: int) -> dict[str, torch.Tensor]:
        torch.set_num_threads(threads)
        return checks.run(OPS[op].pyops, sized, sized.tensors(torch.bfloat16))

    with pyops.use_backend("cpp"):
        one, *more = (bits(threads) for threads in (1, 2, 5))
    assert all(torch.equal(one[name], other[name]) for other in more for name in one)


@pytest.mark.parametrize("features", ["amx_twin", "none"])
def test_with_other_instructions(features: str) -> None:
    """This file again."""
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "accuracy or same_bits")
    done = run_python(*arguments, environment={"PYOPS_CPU_FEATURES": features})
    assert "passed" in done.stdout
