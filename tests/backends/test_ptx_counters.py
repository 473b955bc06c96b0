"""What the PTX machine counts: instructions, sectors, bank conflicts, branches, as a profiler would.

And launches as it records them, whole and as samples of their blocks.
"""

from __future__ import annotations

import time

import pytest

from tests.ptx_machine import machine
from tests.ptx_machine.handwritten import add_one, module, run, store_shared

pytestmark = pytest.mark.skipif(bool(machine.missing_reason()), reason=str(machine.missing_reason()))

SPACE = ".shared .align 16 .b8 space[512];"
LARGE_SPACE = ".shared .align 16 .b8 space[4096];"


def _counted(body: str, **options: object) -> machine.Counters:
    machine.count(True)
    try:
        run(body, **options)
    finally:
        machine.count(False)
    return machine.counters()


@pytest.mark.parametrize(
    ("address", "width", "sectors"),
    [
        ("mad.wide.u32 %d1, %t, 4, %memory;", "u32", 4),
        ("mad.wide.u32 %d1, %t, 8, %memory;", "u32", 8),
        ("mad.wide.u32 %d1, %t, 128, %memory;", "u32", 32),
        ("mad.wide.u32 %d1, %t, 4, %memory; add.s64 %d1, %d1, 4;", "u32", 5),
        ("mov.u64 %d1, %memory;", "u32", 1),
        ("mad.wide.u32 %d1, %t, 2, %memory;", "u16", 2),
        ("mad.wide.u32 %d1, %t, 16, %memory;", "v4.u32", 16),
    ],
)
def test_sectors(address: str, width: str, sectors: int) -> None:
    registers = {"u32": "%r1", "u16": "%h1", "v4.u32": "{%r1, %r2, %r3, %r4}"}[width]
    body = f"{address} ld.global.{width} {registers}, [%d1]; st.global.{width} [%d1], {registers};"
    c = _counted(body, data=[0] * 1056)
    nbytes = {"u32": 4, "u16": 2, "v4.u32": 16}[width]
    assert (c.load_requests, c.load_sectors, c.load_bytes) == (1, sectors, 32 * nbytes)
    assert (c.store_requests, c.store_sectors, c.store_bytes) == (1, sectors, 32 * nbytes)


@pytest.mark.parametrize(
    ("stride", "width", "wavefronts"),
    [
        (4, "u32", 1),
        (8, "u32", 2),
        (16, "u32", 4),
        (128, "u32", 32),
        (132, "u32", 1),
        (0, "u32", 1),
        (2, "u16", 1),
        (8, "v2.u32", 2),
        (16, "v4.u32", 4),
        (32, "v4.u32", 8),
        (144, "v4.u32", 4),
    ],
)
def test_bank_conflicts(stride: int, width: str, wavefronts: int) -> None:
    registers = {"u32": "%t", "u16": "%h1", "v2.u32": "{%t, %t}", "v4.u32": "{%t, %t, %t, %t}"}[width]
    body = f"""
      mov.u16 %h1, 3;
      mov.u32 %r10, space;
      mad.lo.u32 %r11, %t, {stride}, %r10;
      st.shared.{width} [%r11], {registers};"""
    c = _counted(body, declarations=".shared .align 16 .b8 space[8192];")
    assert (c.shared_requests, c.shared_wavefronts) == (1, wavefronts)


@pytest.mark.parametrize(("stride", "wavefronts"), [(16, 4), (128, 32), (144, 4)])
def test_bank_conflicts_of_matrix_loads(stride: int, wavefronts: int) -> None:
    load = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r11];"
    body = f"mov.u32 %r10, space; mad.lo.u32 %r11, %t, {stride}, %r10; {load}"
    c = _counted(body, declarations=".shared .align 16 .b8 space[8192];")
    assert (c.shared_requests, c.shared_wavefronts) == (1, wavefronts)


def test_copies_count_in_both_memories() -> None:
    body = """
      mov.u32 %r10, space;
      shl.b32 %r11, %t, 4;
      add.u32 %r12, %r10, %r11;
      cvt.u64.u32 %d2, %r11;
      add.s64 %d1, %memory, %d2;
      cp.async.cg.shared.global [%r12], [%d1], 16;
      cp.async.wait_all;"""
    c = _counted(body, data=[0] * 128, declarations=SPACE)
    assert (c.load_requests, c.load_sectors, c.load_bytes) == (1, 16, 512)
    assert (c.shared_requests, c.shared_wavefronts) == (1, 4)


def test_instructions_by_class() -> None:
    body = """
      mov.u32 %r2, %laneid;
      setp.lt.u32 %p1, %r2, 8;
      mov.f32 %f1, 0f3F800000;
      fma.rn.f32 %f2, %f1, %f1, %f1;
      @%p1 ex2.approx.f32 %f3, %f2;
      shfl.sync.bfly.b32 %r1, %t, 1, 31, -1;
      @%p1 bra $on;
      bar.warp.sync 0xffffff00;
    $on:
      bar.sync 0;
      st.global.f32 [%own], %f2;"""
    run(module(body), blocks=3, threads=64)
    c = machine.counters()
    assert c.blocks == 3
    assert (c.warps["float32"], c.threads["float32"]) == (6, 192)
    assert (c.warps["special"], c.threads["special"]) == (6, 6 * 8)
    assert (c.warps["warp"], c.warps["store_global"], c.threads["store_global"]) == (6, 6, 192)
    assert (c.barriers, c.branches, c.divergent_branches) == (6, 6, 6)


def test_tensor_flops() -> None:
    mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    parts = "{%f1, %f2, %f3, %f4}, {%r1, %r1, %r1, %r1}, {%r1, %r1}, {%f1, %f2, %f3, %f4}"
    run(f"mov.u32 %r1, 0; {mma} {parts};", threads=64)
    assert machine.counters().tensor_flops == 2 * 2 * 16 * 8 * 16


def test_speed() -> None:
    """At least 20 million thread instructions in a second of the processor."""
    kernel = module(
        """
      mov.u32 %r1, 0;
      mov.f32 %f1, 0f3F800000;
    $loop:
      ld.global.f32 %f2, [%own];
      fma.rn.f32 %f1, %f1, %f1, %f2;
      ex2.approx.f32 %f3, %f1;
      shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;
      add.u32 %r1, %r1, 1;
      setp.lt.u32 %p1, %r1, 20000;
      @%p1 bra $loop;
      st.global.f32 [%own], %f1;"""
    )
    rates = []
    for _ in range(3):
        start = time.process_time()
        run(kernel, blocks=2, threads=256)
        rates.append(sum(machine.counters().threads.values()) / (time.process_time() - start))
    assert max(rates) >= 20e6


# ---- launches ---------------------------------------------------------------------------------------------


def test_a_launch_comes_with_its_shape():
    launch = add_one(8)[0]
    assert (launch.module, launch.entry) == ("handwritten", "kernel")
    assert (launch.grid, launch.block, launch.registers) == ((8, 1, 1), (128, 1, 1), 16)
    assert not launch.cooperative
    assert launch.counters.load_requests == 8 * 4
    assert store_shared(1).static_shared == 4096


@pytest.mark.parametrize(("stride", "sectors"), [(0, 1), (1, 8 * 16), (8, 8 * 128), (9, 8 * 128)])
def test_sectors_that_a_launch_touches_are_counted_once(stride, sectors):
    c = add_one(8, stride=stride)[0].counters
    assert c.touched_sectors == sectors
    assert c.footprint == 4 * max(128, 8 * 128 * stride)


@pytest.mark.parametrize(("stride", "wavefronts"), [(0, 1), (1, 1), (2, 2), (32, 31), (33, 1)])
def test_conflicts_add_to_the_fewest_wavefronts(stride, wavefronts):
    c = store_shared(stride).counters
    assert (c.shared_requests, c.shared_least_wavefronts, c.shared_wavefronts) == (1, 1, wavefronts)


def test_wide_accesses_need_several_wavefronts_without_conflict():
    body = "mov.u32 %r1, space; mad.lo.u32 %r2, %t, 16, %r1; st.shared.v4.u32 [%r2], {%t, %t, %t, %t};"
    load = "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r3, %r4}, [%r2];"
    with machine.record_launches() as launches:
        run(body, declarations=LARGE_SPACE)
        run(f"{body} bar.sync 0; {load}", declarations=LARGE_SPACE)
    assert [launch.counters.shared_least_wavefronts for launch in launches] == [4, 4 + 2]


def test_a_sample_of_blocks_is_spread_over_the_grid():
    launch, written = add_one(200, sample=10)
    assert launch.grid == (200, 1, 1)
    assert launch.counters.blocks == 10
    ran = [block for block in range(200) if all(written[128 * block : 128 * (block + 1)])]
    assert sum(written) == 10 * 128
    assert [block // 20 for block in ran] == list(range(10))
    assert len({block % 20 for block in ran}) > 3
    assert launch.counters.footprint == 4 * 200 * 128


def test_a_sample_knows_what_blocks_share():
    assert add_one(200, stride=0, sample=10)[0].counters.common_sectors == 1
    assert add_one(200, stride=1, sample=10)[0].counters.common_sectors == 0


def test_a_grid_whose_blocks_speak_to_each_other_runs_whole():
    with machine.record_launches(sample=2) as launches:
        run("atom.global.add.u32 %r1, [%memory], 1;", blocks=9, data=[0])
        run("mov.u32 %r1, 0;", blocks=9, cooperative=True)
    assert [launch.counters.blocks for launch in launches] == [9, 9]


def test_cooperating_blocks_have_as_many_multiprocessors_as_asked_for():
    with machine.record_launches(multiprocessors=132) as launches:
        run("mov.u32 %r1, 0;", blocks=132, threads=1024, cooperative=True, registers=64)
    assert launches[0].cooperative
    with pytest.raises(machine.Fault, match="can be resident"):
        run("mov.u32 %r1, 0;", blocks=132, threads=1024, cooperative=True, registers=64)


def test_recording_ends_with_the_context():
    with machine.record_launches(sample=1) as launches:
        pass
    run("ld.global.u32 %r1, [%own];", blocks=3)
    assert launches == []
    assert machine.counters().blocks == 3
    assert machine.counters().load_sectors == 0  # counted no more
