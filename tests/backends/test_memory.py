"""The cache of large CPU outputs: reuse, limit, accounting, and that reused memory changes no result."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import pyops
from pyops import functional as F
from pyops.memory import output_cache_stats, set_output_cache_limit

LARGE = (512, 1024)  # 2 MiB of float32
LIMIT = 64 << 20


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    before = output_cache_stats().limit
    with pyops.use_backend("cpp"):
        set_output_cache_limit(0)
        set_output_cache_limit(LIMIT)
        yield
        set_output_cache_limit(before)


def test_memory_of_a_dead_output_is_used_again() -> None:
    x = torch.randn(LARGE)
    first = F.softmax(x, 1)
    address = first.data_ptr()
    del first
    assert F.softmax(x, 1).data_ptr() == address


def test_a_living_output_keeps_its_memory() -> None:
    x = torch.randn(LARGE)
    first = F.softmax(x, 1)
    kept = first.clone()
    view = first[1:]
    del first
    second = F.softmax(-x, 1)
    assert second.data_ptr() + second.nbytes <= view.data_ptr() or view.data_ptr() < second.data_ptr()
    assert torch.equal(view, kept[1:])


def test_reused_memory_does_not_show_in_results() -> None:
    x, target = torch.randn(LARGE, requires_grad=True), torch.randint(LARGE[1], LARGE[:1])

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(F.cross_entropy(x, target, ignore_index=int(target[0])), x)[0]

    clean = gradient().clone()
    F.softmax(torch.full(LARGE, float("nan")), 1)  # leaves NaN behind
    assert torch.equal(gradient(), clean)


def test_accounting_follows_the_tensors() -> None:
    x = torch.randn(LARGE)
    assert output_cache_stats()[1:] == (0, 0, 0)
    y, z = F.softmax(x, 1), F.log_softmax(x, 1)
    assert output_cache_stats() == (LIMIT, 0, 4 << 20, 4 << 20)
    del y, z
    assert output_cache_stats() == (LIMIT, 4 << 20, 0, 4 << 20)


def test_idle_memory_stays_below_the_limit() -> None:
    set_output_cache_limit(3 << 20)
    outputs = [F.softmax(torch.randn(LARGE), 1) for _ in range(4)]
    del outputs
    assert output_cache_stats().idle == 2 << 20


def test_limit_zero_frees_and_turns_off() -> None:
    x = torch.randn(LARGE)
    F.softmax(x, 1)
    set_output_cache_limit(0)
    y = F.softmax(x, 1)
    assert output_cache_stats()[:3] == (0, 0, 0)
    assert torch.equal(y, F.softmax(x, 1))


def test_small_outputs_are_torchs_own() -> None:
    y = F.softmax(torch.randn(100, 10), 1)
    assert output_cache_stats().in_use == 0
    y.resize_(10)  # as any tensor of torch's allocator


def test_outputs_may_die_in_other_threads() -> None:
    def work(seed: int) -> bool:
        x = torch.full(LARGE, float(seed))
        return all(torch.allclose(F.softmax(x, 1), torch.tensor(1 / LARGE[1])) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
    assert output_cache_stats().in_use == 0


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="limit must not be negative, got -1"):
        set_output_cache_limit(-1)


@pytest.mark.parametrize("classes", [2**40, 2**60, 2**62])
def test_sizes_no_machine_holds_raise(classes: int) -> None:
    target, one = torch.zeros(4, dtype=torch.int64), torch.ones(())
    with pytest.raises(RuntimeError):
        torch.ops.pyops.nll_loss_backward(one, target, None, one, classes, 1, -100, torch.float32)
