"""The masks of dropout: Philox of seed and element, the same on every backend, and as good as random."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pyops
import pyops.functional as F
from pyops.ops.dropout import draw_seed
from tests.suite.backends import BACKENDS, Backend, activate, missing_reason, raw
from tests.suite.cases import DTYPES
from tests.suite.ops.dropout import SEED, draws, factors, fixed_seed, philox

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_suites_philox_gives_the_published_answers(counter, key, words) -> None:
    """The known-answer vectors of Random123 (kat_vectors, philox4x32 10)."""
    assert tuple(philox(np.array([counter], np.uint64), key)[0]) == words


@pytest.mark.parametrize("seed", [(0, 0), SEED, (-1, -1), (2**63 - 1, -(2**63)), (1, 0), (0, 1)])
def test_mask_is_philox_of_seed_and_element(backend: Backend, seed: tuple[int, int]) -> None:
    with fixed_seed(seed):
        for p in (0.25, 0.9):
            mask = F.dropout(torch.ones(1900, device=backend.device), p).cpu()
            assert torch.equal(mask, factors(p, (1900,), seed).float())


@pytest.mark.parametrize("element", [0, 3, 800, 1899])
def test_p_is_exact_to_2_to_the_minus_32(backend: Backend, element: int) -> None:
    """Only the high half of a draw was compared, and p rounded to 2^-16."""
    draw = int(draws(SEED, 1900)[element])
    with fixed_seed():
        for p in (draw / 2**32, (draw + 1) / 2**32):
            mask = F.dropout(torch.ones(1900, device=backend.device), p).cpu()
            assert torch.equal(mask, factors(p, (1900,)).float())
            assert (mask[element].item() == 0.0) == (p * 2**32 > draw)


@pytest.mark.parametrize("p", [2.0**-18, 1 - 2.0**-18])
def test_low_halves_of_draws_decide_at_both_ends(p: float) -> None:
    with fixed_seed():
        mask = F.dropout(torch.ones(1 << 21), p)
    assert torch.equal(mask, factors(p, (1 << 21,)).float())
    assert 0 < min((mask == 0).sum().item(), (mask != 0).sum().item()) < 30


@pytest.mark.parametrize("p", [0.1, 0.3, 1 / 3, 0.999])
def test_kept_elements_are_scaled_as_torchs(p: float) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.ones(1 << 14, dtype=dtype)
        ours, theirs = F.dropout(x, p).max(), torch.nn.functional.dropout(x, p).max()
        torch.testing.assert_close(ours, theirs, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 63, 64, 65, 255, 257, 1023, 1025, 2049])
def test_mask_at_sizes_that_end_inside_a_block(kernels: Backend, size: int) -> None:
    with fixed_seed():
        for dtype in DTYPES:
            x = torch.ones(size, dtype=dtype, device=kernels.device)
            assert torch.equal(F.dropout(x, 0.5).cpu().double(), factors(0.5, (size,)))


@pytest.mark.large
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pitfall_01_mask_beyond_2_to_the_32(kernels: Backend, dtype: torch.dtype) -> None:
    if not kernels.thorough:
        pytest.skip("too slow")
    count = 2**32 + 9
    mask = raw(kernels, "dropout")(
        torch.ones(count, dtype=dtype, device=kernels.device), torch.tensor(SEED, device=kernels.device), 0.5
    )
    tail = torch.from_numpy(draws(SEED, 1000, count - 1000) >= 2**31)
    assert torch.equal(mask[-1000:].cpu() != 0, tail)


def test_every_backend_makes_the_same_mask() -> None:
    seed, x = draw_seed(torch.device("cpu")), torch.ones(1111)
    masks = []
    for backend in (b for b in BACKENDS if b.device == "cpu" and not missing_reason(b)):
        activate(backend)
        with pyops.use_backend(backend.name), fixed_seed(tuple(seed.tolist())):
            masks.append(F.dropout(x, 0.4))
    assert len(masks) >= 2
    assert all(torch.equal(mask, masks[0]) for mask in masks)


# ---------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.5, 0.9])
def test_share_of_kept_elements_and_scale(p: float) -> None:
    count, keep = 1 << 20, 1 - p
    y = F.dropout(torch.ones(count), p)
    assert abs((y != 0).double().mean().item() - keep) < 5 * math.sqrt(keep * (1 - keep) / count)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / keep).item()}


@pytest.mark.parametrize("lag", [1, 2, 7, 8, 16, 1024])
def test_neighbours_are_independent(lag: int) -> None:
    count = 1 << 20
    kept = (F.dropout(torch.ones(count + lag), 0.5) != 0).double() * 2 - 1
    assert abs((kept[lag:] * kept[:-lag]).mean().item()) < 5 / math.sqrt(count)


def test_halves_of_words_slots_of_blocks_and_seeds_are_independent() -> None:
    count = 1 << 20
    one, other = ((F.dropout(torch.ones(count), 0.5) != 0).double() * 2 - 1 for _ in range(2))
    assert abs((one * other).mean().item()) < 5 / math.sqrt(count)
    slots = one.view(-1, 8)
    correlation = slots.T @ slots / len(slots) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max().item() < 5.5 / math.sqrt(len(slots))
    assert slots.mean(0).abs().max().item() < 5 / math.sqrt(len(slots))


def test_seeds_that_differ_in_one_bit_give_unrelated_masks() -> None:
    count, masks = 1 << 16, []
    for bit in (0, 31, 32, 63):
        for part in (0, 1):
            seed = [5, 6]
            seed[part] ^= 1 << bit if bit < 63 else -(1 << 63)
            with fixed_seed((seed[0], seed[1])):
                masks.append((F.dropout(torch.ones(count), 0.5) != 0).double() * 2 - 1)
    stacked = torch.stack(masks)
    correlation = stacked @ stacked.T / count - torch.eye(len(masks), dtype=torch.float64)
    assert correlation.abs().max().item() < 5.5 / math.sqrt(count)


def test_tiny_and_large_probabilities_are_not_rounded_away() -> None:
    x = torch.ones(1 << 20)
    assert 0 < (F.dropout(x, 1e-5) == 0).sum() < 64
    assert 0 < (F.dropout(x, 1 - 1e-5) != 0).sum() < 64


# --------------------------------------------------------------------------------------------------- seeds


def test_manual_seed_and_generator_fix_the_mask(backend: Backend) -> None:
    x = torch.ones(500, device=backend.device)
    torch.manual_seed(5)
    first, second = F.dropout(x), F.dropout(x)
    torch.manual_seed(5)
    assert torch.equal(F.dropout(x), first)
    assert not torch.equal(first, second)
    generator = torch.Generator(backend.device).manual_seed(1)
    own = F.dropout(x, generator=generator), F.dropout(x, activation="relu", generator=generator)
    assert torch.equal(F.dropout(x), second)  # torch's own generator was left alone
    assert torch.equal(F.dropout(x, generator=generator.manual_seed(1)), own[0])
    assert torch.equal(F.dropout(x, activation="relu", generator=generator), own[1])
    assert not torch.equal(*own)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.device == "cuda"], ids=str, indirect=True)
def test_cuda_graph_replays_draw_new_masks(backend: Backend) -> None:
    x = torch.ones(4096, device="cuda")
    F.dropout(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = F.dropout(x)
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(y.clone())
    assert not torch.equal(*masks)
