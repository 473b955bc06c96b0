"""The cache of large CPU outputs: reuse, limit, accounting, and that reused memory changes no result."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import pyops
from pyops import functional as F
from pyops.memory import output_cache_stats, set_output_cache_limit
from tests.suite.processes import run_python

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


def test_an_output_took_whole_huge_pages() -> None:
    """One of 1.1 MiB took 2, and the peak of LeNet's step was a third above torch's."""
    x = torch.randn(300, 1000)
    y = F.softmax(x, 1)
    assert y.nbytes <= output_cache_stats().in_use < y.nbytes + 4096


_NO_ROOM = """
import resource
from pathlib import Path
import torch
from pyops import functional as F
from pyops.memory import output_cache_stats
torch.set_num_threads(1)
small, large = torch.ones(6, 1 << 20), torch.ones(16, 1 << 20)
outputs = [F.softmax(small, 1) for _ in range(4)]
wanted = F.softmax(large, 1).clone()
del outputs
assert output_cache_stats().idle == (4 * 24 + 64) << 20
a, b = F.softmax(large, 1), None
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (8 << 20), resource.RLIM_INFINITY))
b = F.softmax(large, 1)
assert torch.equal(a, wanted) and torch.equal(b, wanted)
assert output_cache_stats().idle == 0
try:
    F.softmax(large, 1)
except RuntimeError as error:
    assert "can't allocate memory" in str(error), error
else:
    raise AssertionError("there was no room for a third")
del a
assert torch.equal(F.softmax(large, 1), wanted)
"""


def test_idle_memory_was_kept_while_an_output_found_none() -> None:
    run_python("-c", _NO_ROOM, environment={"PYOPS_BACKEND": None})


def test_without_the_cache_outputs_can_be_resized() -> None:
    """Frameworks free activations by resizing their storage, which memory of the cache refuses."""
    x = torch.randn(LARGE)
    cached = F.softmax(x, 1)
    with pytest.raises(RuntimeError, match="not resizable"):
        cached.untyped_storage().resize_(0)
    set_output_cache_limit(0)
    y = F.softmax(x, 1)
    y.untyped_storage().resize_(0)
    y.untyped_storage().resize_(x.nbytes)
    assert y.resize_(2 * x.numel()).numel() == 2 * x.numel()
