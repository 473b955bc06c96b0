"""Blocks of one launch in the PTX machine: what they see of each other's stores, and how they wait."""

from __future__ import annotations

import time

import pytest

from tests.ptx_machine import machine
from tests.ptx_machine.handwritten import module, run

pytestmark = pytest.mark.skipif(bool(machine.missing_reason()), reason=str(machine.missing_reason()))

STORE = "st.global.u32 [%own], %r1;"


# ----------------------------------------------------------------------------- stores that others may see

# Block 0 stores 41 and raises a flag; block 1 waits for the flag and stores what it finds, and one.
MESSAGE = """
      setp.ne.u32 %p1, %b, 0;
      @%p1 bra $read;
      mov.u32 %r2, 41;
      st.global.u32 [%memory], %r2;
      FENCE
      atom.global.exch.b32 %r3, [%memory+4], 1;
      ret;
    $read:
      ld.acquire.gpu.global.u32 %r4, [%memory+4];
      setp.ne.u32 %p2, %r4, 1;
      @%p2 bra $read;
      ld.global.u32 %r1, [%memory];
      add.u32 %r1, %r1, 1;
      st.global.u32 [%memory+8], %r1;"""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("fence", "found"),
    [
        ("fence.acq_rel.gpu;", 42),
        ("membar.gl;", 42),
        ("fence.sc.sys;", 42),
        ("fence.acq_rel.cta;", 1),
        ("", 1),
    ],
)
def test_a_message_needs_a_fence(fence: str, found: int, seed: int) -> None:
    assert run(MESSAGE.replace("FENCE", fence), blocks=2, threads=1, data=[0] * 3, seed=seed)[2] == found


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("st.release.gpu.global.u32 [%memory+4], 1;", 42),
        ("st.relaxed.gpu.global.u32 [%memory+4], 1;", 1),
        ("st.volatile.global.u32 [%memory+4], 1;", 1),
        ("atom.release.gpu.global.exch.b32 %r3, [%memory+4], 1;", 42),
        ("red.release.gpu.global.add.u32 [%memory+4], 1;", 42),
        ("red.global.add.u32 [%memory+4], 1;", 1),
    ],
)
def test_how_a_flag_is_raised(flag: str, found: int) -> None:
    body = MESSAGE.replace("FENCE", "").replace("atom.global.exch.b32 %r3, [%memory+4], 1;", flag)
    assert run(body, blocks=2, threads=1, data=[0] * 3)[2] == found


def test_a_flag_of_a_plain_store_is_never_seen() -> None:
    body = MESSAGE.replace("atom.global.exch.b32 %r3, [%memory+4], 1;", "st.global.u32 [%memory+4], 1;")
    with pytest.raises(machine.Fault, match="deadlock"):
        run(body.replace("FENCE", ""), blocks=2, threads=1, data=[0] * 3)


@pytest.mark.parametrize("acquire", [True, False])
def test_what_a_block_has_read_stays_the_same_until_it_acquires(acquire: bool) -> None:
    body = MESSAGE.replace("FENCE", "fence.acq_rel.gpu;")
    body = body.replace("$read:\n", "ld.global.u32 %r5, [%memory];\n    $read:\n", 1)
    body = body.replace("@%p1 bra $read;", "@%p1 bra $early;").replace(
        "ld.global.u32 %r5", "$early: ld.global.u32 %r5"
    )
    if not acquire:
        body = body.replace("ld.acquire.gpu", "ld.relaxed.gpu")
    # Block 1 starts first with some of the seeds, and has read the old value then.
    found = [run(body, blocks=2, threads=1, data=[0] * 3, seed=seed)[2] for seed in range(8)]
    assert set(found) == ({42} if acquire else {1, 42})
    fresh = body.replace("ld.global.u32 %r1, [%memory];", "ld.global.cg.u32 %r1, [%memory];")
    assert run(fresh, blocks=2, threads=1, data=[0] * 3)[2] == 42


def test_a_plain_load_may_wait_for_ever() -> None:
    body = MESSAGE.replace("FENCE", "fence.acq_rel.gpu;").replace("ld.acquire.gpu.global", "ld.global")
    # Block 1 comes first.
    body = body.replace("setp.ne.u32 %p1, %b, 0;", "setp.eq.u32 %p1, %b, 0;")
    with pytest.raises(machine.Fault, match="deadlock"):
        run(body, blocks=2, threads=1, data=[0] * 3)


def test_loads_as_of_constants_must_not_see_what_the_launch_stores() -> None:
    body = MESSAGE.replace("FENCE", "fence.acq_rel.gpu;")
    body = body.replace("ld.global.u32 %r1, [%memory];", "ld.global.nc.u32 %r1, [%memory+PLACE];")
    run(body.replace("PLACE", "12"), blocks=2, threads=1, data=[0] * 4)
    with pytest.raises(machine.Fault, match="from what this launch has stored"):
        run(body.replace("PLACE", "0"), blocks=2, threads=1, data=[0] * 4)


def test_a_fence_speaks_for_threads_that_a_barrier_joined() -> None:
    body = """
      setp.ne.u32 %p1, %b, 0;
      @%p1 bra $read;
      st.global.u32 [%own], %t;
      BARRIER
      setp.ne.u32 %p2, %t, 0;
      @%p2 ret;
      fence.acq_rel.gpu;
      atom.global.exch.b32 %r3, [%memory+512], 1;
      ret;
    $read:
      ld.acquire.gpu.global.u32 %r4, [%memory+512];
      setp.ne.u32 %p2, %r4, 1;
      @%p2 bra $read;
      sub.s64 %d1, %own, 256;
      ld.global.u32 %r1, [%d1];
      st.global.u32 [%own], %r1;"""
    data = [-1] * 128 + [0]
    found = run(body.replace("BARRIER", "bar.sync 0;"), blocks=2, threads=64, data=data)
    assert found[64:128] == list(range(64))
    found = run(body.replace("BARRIER", ""), blocks=2, threads=64, data=data)
    assert -1 in found[64:128]


# ------------------------------------------------------------------------- cooperative launches, deadlock

# All blocks count themselves, wait for the count and read what their neighbour stored.
GRID_SYNC = f"""
      st.global.u32 [%own], %i;
      FENCE
      atom.global.add.u32 %r2, [%memory+256], 1;
      mov.u32 %r3, %nctaid.x;
    $wait:
      ld.acquire.gpu.global.u32 %r4, [%memory+256];
      setp.lt.u32 %p1, %r4, %r3;
      @%p1 bra $wait;
      xor.b32 %r5, %i, 1;
      mad.wide.u32 %d1, %r5, 4, %memory;
      ld.global.u32 %r1, [%d1];
      bar.sync 0;
      {STORE}"""


@pytest.mark.parametrize("seed", range(3))
def test_cooperating_blocks_run_together(seed: int) -> None:
    body = GRID_SYNC.replace("FENCE", "fence.acq_rel.gpu;")
    found = run(body, blocks=64, threads=1, data=[0] * 65, cooperative=True, seed=seed)
    assert found[:64] == [b ^ 1 for b in range(64)]


def test_blocks_that_do_not_cooperate_may_wait_for_ever() -> None:
    start = time.perf_counter()
    with pytest.raises(machine.Fault, match="deadlock: blocks wait for each other"):
        run(GRID_SYNC.replace("FENCE", "fence.acq_rel.gpu;"), blocks=64, threads=1, data=[0] * 65)
    assert time.perf_counter() - start < 30  # three seconds where nothing else runs


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "fit"),
    [(1024, 0, 0, 32), (1024, 64, 0, 16), (32, 0, 0, 512), (256, 0, 100 << 10, 32), (1024, 65, 0, 0)],
)
def test_no_more_blocks_cooperate_than_are_resident(
    threads: int, registers: int, shared: int, fit: int
) -> None:
    kernel = module("mov.u32 %r1, 0;")
    options = {"threads": threads, "registers": registers, "shared": shared, "max_shared": 227 << 10}
    resident = machine.library().ptx_resident_blocks(kernel.handle, b"kernel", threads, shared, registers)
    assert resident == fit
    if fit:
        run(kernel, blocks=fit, cooperative=True, **options)
    with pytest.raises(machine.Fault, match=f"more than the {fit} that can be resident"):
        run(kernel, blocks=fit + 1, cooperative=True, **options)


@pytest.mark.parametrize(
    "spin",
    [
        "bra $spin;",
        "atom.global.cas.b32 %r2, [%memory], 7, 7; bra $spin;",
        "fence.acq_rel.gpu; bra $spin;",
        "ld.global.u32 %r2, [%memory]; bra $spin;",
        "st.global.u32 [%own], %t; bra $spin;",
    ],
)
def test_a_loop_that_does_not_end_is_given_up(spin: str) -> None:
    with pytest.raises(machine.Fault, match="loop does not end"):
        run(f"$spin: {spin}", blocks=2, threads=1)
