"""Launches as the PTX machine records them, whole and as samples of their blocks."""

from __future__ import annotations

import pytest

from tests.ptx_machine import machine
from tests.ptx_machine.handwritten import add_one, run, store_shared

pytestmark = pytest.mark.skipif(bool(machine.missing_reason()), reason=str(machine.missing_reason()))

SPACE = ".shared .align 16 .b8 space[4096];"


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
        run(body, declarations=SPACE)
        run(f"{body} bar.sync 0; {load}", declarations=SPACE)
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
