"""What lanes and warps do together in the PTX machine: shuffles, votes, barriers, copies and so on."""

from __future__ import annotations

import functools
import operator

import pytest

from tests.ptx_machine import machine
from tests.ptx_machine.handwritten import run

pytestmark = pytest.mark.skipif(bool(machine.missing_reason()), reason=str(machine.missing_reason()))

LANES = list(range(32))
STORE = "st.global.u32 [%own], %r1;"
SPACE = ".shared .align 16 .b8 space[2048];"


# ----------------------------------------------------------------------- shuffles, votes and reductions


def _source(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """As the manual writes it."""
    clamp, segment = c & 31, c >> 8 & 31
    most, least = (lane & segment) | (clamp & ~segment), lane & segment
    j = {
        "up": lane - b,
        "down": lane + b,
        "bfly": lane ^ b,
        "idx": least | (b & ~segment),
    }[mode]
    inside = j >= most if mode == "up" else j <= most
    return (j if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("b", [1, 3, 8, 17])
def test_shuffles(mode: str, width: int, b: int) -> None:
    c = (32 - width) << 8 | (0 if mode == "up" else 31)
    body = f"""
      add.u32 %r2, %t, 100;
      shfl.sync.{mode}.b32 %r1|%p1, %r2, {b}, {c}, -1;
      @%p1 add.u32 %r1, %r1, 1000;
      {STORE}"""
    expected = []
    for lane in LANES:
        source, inside = _source(mode, lane, b, c)
        expected.append(source + 100 + 1000 * inside)
    assert run(body) == expected


HALF = "setp.lt.u32 %p1, %t, 16;"
SHUFFLE = "shfl.sync.bfly.b32 %r1, %t, 1, 31, -1;"


def test_a_shuffle_among_half_of_the_lanes() -> None:
    body = f"{HALF} mov.u32 %r1, 7; @%p1 shfl.sync.bfly.b32 %r1, %t, 1, 31, 0xffff; {STORE}"
    assert run(body) == [t ^ 1 if t < 16 else 7 for t in LANES]


def test_lanes_of_a_shuffle_wait_for_each_other() -> None:
    body = f"""
      {HALF}
      mov.u32 %r2, 1;
      @%p1 bra $meet;
      mov.u32 %r2, 2;
    $meet:
      shfl.sync.bfly.b32 %r1, %r2, 16, 31, -1;
      {STORE}"""
    for seed in range(6):
        assert run(body, seed=seed) == [2 if t < 16 else 1 for t in LANES]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{HALF} @%p1 {SHUFFLE}", "wait for each other at different places"),
        (f"{HALF} @!%p1 ret; {SHUFFLE}", "waits for lanes 16-31, which have exited"),
        ("shfl.sync.bfly.b32 %r1, %t, 1, 31, 0x7fffffff;", "is not in the mask of its own warp operation"),
        (f"{HALF} @%p1 shfl.sync.bfly.b32 %r1, %t, 16, 31, 0xffff;", "lane 16, which is outside the mask"),
        ("shfl.sync.bfly.b32 %r1, %t, 1, 31, %r2;", "mask of lanes has never been given a value"),
        ("shl.b32 %r2, -1, %t; shfl.sync.bfly.b32 %r1, %t, 1, 31, %r2;", "name different masks"),
        ("shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1; st.global.u32 [%own], %r1;", "value to store"),
        (f"{HALF} @%p1 bar.warp.sync -1;", "wait for each other at different places"),
        (f"{HALF} @%p1 vote.sync.any.pred %p2, %p1, -1;", "wait for each other at different places"),
        ("vote.sync.any.pred %p2, %p1, -1;", "predicate of a vote has never been given a value"),
    ],
)  # fmt: skip
def test_faults_of_warp_operations(body: str, message: str) -> None:
    with pytest.raises(machine.Fault, match=message):
        run(body)


def test_a_full_mask_in_a_partial_warp_is_a_fault() -> None:
    with pytest.raises(machine.Fault, match="names lanes 20-31, which the block does not have"):
        run("shfl.sync.bfly.b32 %r1, %t, 1, 31, -1;", threads=20)


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, (0, 0, 1, 0)), (5, (0, 1, 0, 0b11111)), (32, (1, 1, 1, -1))]
)
def test_votes(limit: int, expected: tuple[int, ...]) -> None:
    body = f"""
      setp.lt.u32 %p1, %t, {limit};
      vote.sync.all.pred %p2, %p1, -1;
      vote.sync.any.pred %p3, %p1, -1;
      vote.sync.uni.pred %p4, %p1, -1;
      vote.sync.ballot.b32 %r1, %p1, -1;
      selp.u32 %r2, 1, 0, %p2;
      selp.u32 %r3, 1, 0, %p3;
      selp.u32 %r4, 1, 0, %p4;
      mov.u64 %d1, %memory;
      st.global.v4.u32 [%d1], {{%r2, %r3, %r4, %r1}};"""
    assert run(body, data=[-1] * 4) == list(expected)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("add.s32", sum(range(-5, 27))),
        ("add.u32", sum(range(-5, 27))),
        ("min.s32", -5),
        ("max.s32", 26),
        ("min.u32", 0),
        ("max.u32", -1),
        ("and.b32", functools.reduce(operator.and_, range(-5, 27))),
        ("or.b32", functools.reduce(operator.or_, range(-5, 27))),
        ("xor.b32", functools.reduce(operator.xor, range(-5, 27))),
    ],
)
def test_reductions(operation: str, expected: int) -> None:
    body = f"sub.u32 %r2, %t, 5; redux.sync.{operation} %r1, %r2, -1; st.global.u32 [%own], %r1;"
    assert run(body) == [expected] * 32


def test_a_reduction_of_some_lanes() -> None:
    body = """
      setp.lt.u32 %p1, %t, 12;
      mov.u32 %r1, 7;
      @%p1 redux.sync.max.s32 %r1, %t, 0xfff;
      st.global.u32 [%own], %r1;"""
    assert run(body) == [11] * 12 + [7] * 20


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("setp.lt.u32 %p1, %t, 31; @%p1 mov.u32 %r2, 1; redux.sync.add.s32 %r1, %r2, -1;", "value to store"),
        ("redux.sync.add.b32 %r1, %t, -1;", "unknown instruction"),
        ("redux.sync.add.s32 %r1, %t, 1;", "not in the mask"),
    ],
)
def test_reductions_that_are_refused(body: str, message: str) -> None:
    with pytest.raises(machine.Fault, match=message):
        run(f"{body} st.global.u32 [%own], %r1;")


# -------------------------------------------------------------------------------------------- barriers

THROUGH_SHARED = f"""
      mov.u32 %r10, space;
      shl.b32 %r11, %t, 2;
      add.u32 %r12, %r10, %r11;
      st.shared.u32 [%r12], %t;
      bar.sync 0;
      sub.u32 %r13, %r63, 1;
      sub.u32 %r13, %r13, %t;
      shl.b32 %r13, %r13, 2;
      add.u32 %r13, %r10, %r13;
      ld.shared.u32 %r1, [%r13];
      {STORE}"""


@pytest.mark.parametrize("seed", range(4))
def test_a_barrier_of_several_warps(seed: int) -> None:
    assert run(THROUGH_SHARED, threads=100, declarations=SPACE, seed=seed) == list(range(99, -1, -1))


BARRIER_FAULTS = {
    "half of a warp": (f"{HALF} @%p1 bra $on; bar.sync 0;\n$on:", "have exited|wait for each other"),
    "one warp of two": ("setp.lt.u32 %p1, %t, 32; @%p1 bra $on; bar.sync 0;\n$on:", "exited"),
    "the first warp only": ("setp.ge.u32 %p1, %t, 32; @%p1 bra $on; bar.sync 0;\n$on:", "exited"),
    "after some lanes returned": (f"{HALF} @%p1 ret; bar.sync 0;", "waits for lanes 0-15, which have exited"),
    "guarded": (f"{HALF} @%p1 bar.sync 0;", "wait for each other"),
    "two barriers": (
        "setp.lt.u32 %p1, %t, 32; @%p1 bra $other; bar.sync 0; bra $on;\n$other: bar.sync 0;\n$on:",
        "another warp waits at another barrier",
    ),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(BARRIER_FAULTS))
def test_barriers_that_not_all_threads_reach(name: str, seed: int) -> None:
    body, message = BARRIER_FAULTS[name]
    with pytest.raises(machine.Fault, match=message):
        run(body, threads=64, seed=seed)


# ----------------------------------------------------------------------------------- asynchronous copies

COPY = """
      mov.u32 %r10, space;
      shl.b32 %r11, %t, 4;
      add.u32 %r12, %r10, %r11;
      cvt.u64.u32 %d2, %r11;
      add.s64 %d1, %memory, %d2;
      cp.async.cg.shared.global [%r12], [%d1], 16;
      cp.async.commit_group;
      cp.async.cg.shared.global [%r12+512], [%d1], 16;
      cp.async.commit_group;
"""


def _copied(wait: str, offset: int, between: str = "bar.sync 0;", threads: int = 32) -> list[int]:
    body = f"""{COPY}
      {wait}
      {between}
      shl.b32 %r13, %t, 2;
      add.u32 %r14, %r10, %r13;
      ld.shared.u32 %r1, [%r14+{offset}];
      {STORE}"""
    return run(body, data=range(threads * 4), threads=threads, declarations=SPACE)[:threads]


@pytest.mark.parametrize("offset", [0, 512])
@pytest.mark.parametrize("wait", ["cp.async.wait_group 0;", "cp.async.wait_all;"])
def test_copies_that_were_waited_for(wait: str, offset: int) -> None:
    assert _copied(wait, offset) == LANES


def test_groups_arrive_in_order() -> None:
    assert _copied("cp.async.wait_group 1;", 0) == LANES
    with pytest.raises(machine.Fault, match="value to store has never been given a value"):
        _copied("cp.async.wait_group 1;", 512)


@pytest.mark.parametrize("wait", ["", "cp.async.wait_group 2;"])
def test_copies_come_no_sooner_than_they_are_waited_for(wait: str) -> None:
    with pytest.raises(machine.Fault, match="value to store has never been given a value"):
        _copied(wait, 0)


def test_copies_of_another_warp_need_a_barrier() -> None:
    copy = COPY[: COPY.index("cp.async.commit_group")]
    body = f"{copy} cp.async.wait_all; BARRIER xor.b32 %r3, %r12, 512; ld.shared.u32 %r1, [%r3]; {STORE}"
    options = {"data": range(256), "threads": 64, "declarations": ".shared .align 1024 .b8 space[1024];"}
    assert run(body.replace("BARRIER", "bar.sync 0;"), **options)[:3] == [128, 132, 136]
    with pytest.raises(machine.Fault, match=r"value to store|reads what was written by warp"):
        run(body.replace("BARRIER", ""), **options)


def test_a_copy_fills_with_zeros() -> None:
    body = f"""
      mov.u32 %r10, space;
      shl.b32 %r11, %t, 4;
      add.u32 %r12, %r10, %r11;
      cvt.u64.u32 %d2, %r11;
      add.s64 %d1, %memory, %d2;
      setp.lt.u32 %p1, %t, 4;
      selp.u32 %r2, 8, 0, %p1;
      @!%p1 add.s64 %d1, %d1, 65536;   // not read, so it may lie anywhere
      cp.async.cg.shared.global [%r12], [%d1], 16, %r2;
      cp.async.wait_all;
      ld.shared.v4.u32 {{%r3, %r4, %r5, %r6}}, [%r12];
      add.u32 %r1, %r3, %r4;
      add.u32 %r1, %r1, %r5;
      add.u32 %r1, %r1, %r6;
      {STORE}"""
    expected = [8 * t + 201 if t < 4 else 0 for t in LANES]
    assert run(body, data=range(100, 228), declarations=SPACE)[:32] == expected


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("[%r12], [%d1], 16;", "[%r12+8], [%d1], 16;"), "no multiple of the copy's 16 bytes"),
        (("[%r12], [%d1], 16;", "[%r12], [%d1+4], 16;"), "no multiple of the copy's 16 bytes"),
        (("[%r12], [%d1], 16;", "[%r12+2048], [%d1], 16;"), "outside the shared"),
        (("[%r12], [%d1], 16;", "[%r12], [%d1+16], 16;"), "past the end of a tensor of 512 bytes"),
        (("mov.u32 %r10, space;", "ld.global.u32 %r9, [%d9];"), "address has never been"),
    ],
)  # fmt: skip
def test_faults_of_copies(edit: tuple[str, str], message: str) -> None:
    with pytest.raises(machine.Fault, match=message):
        run(COPY.replace(*edit), data=range(128), declarations=SPACE)


def test_a_copy_over_what_others_still_read() -> None:
    body = f"""
      mov.u32 %r10, space;
      shl.b32 %r11, %t, 4;
      and.b32 %r11, %r11, 511;
      add.u32 %r12, %r10, %r11;
      st.shared.v4.u32 [%r12], {{1, 2, 3, 4}};
      bar.sync 0;
      ld.shared.u32 %r1, [%r12];
      BARRIER
      setp.lt.u32 %p1, %t, 32;
      @%p1 cp.async.cg.shared.global [%r12], [%memory], 16;
      cp.async.wait_all;
      {STORE}"""
    assert run(body.replace("BARRIER", "bar.sync 0;"), threads=64, declarations=SPACE) == [1] * 64
    for seed in range(4):
        with pytest.raises(machine.Fault, match=r"with no barrier in between|value to store"):
            run(body.replace("BARRIER", ""), threads=64, declarations=SPACE, seed=seed)


# -------------------------------------------------------------------------------------------- ldmatrix


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrix_loads(count: int, trans: str) -> None:
    results = ", ".join(f"%r{20 + k}" for k in range(count))
    vector = {1: "u32", 2: "v2.u32", 4: "v4.u32"}[count]
    body = f"""
      mov.u32 %r10, space;
      shl.b32 %r11, %t, 4;
      add.u32 %r12, %r10, %r11;
      mul.lo.u32 %r2, %t, 0x00080008;
      add.u32 %r2, %r2, 0x00010000;
      add.u32 %r3, %r2, 0x00020002;
      add.u32 %r4, %r2, 0x00040004;
      add.u32 %r5, %r2, 0x00060006;
      st.shared.v4.u32 [%r12], {{%r2, %r3, %r4, %r5}};
      bar.warp.sync -1;
      ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{results}}}, [%r12];
      mul.wide.u32 %d1, %t, {4 * count};
      add.s64 %d1, %memory, %d1;
      st.global.{vector} [%d1], {{{results}}};"""
    if count == 1:
        body = body.replace("u32 [%d1], {%r20}", "u32 [%d1], %r20")
    found = run(body, data=[0] * 32 * count, declarations=SPACE)
    for lane in LANES:
        for k in range(count):
            pairs = [(lane // 4, lane % 4 * 2 + e) for e in (0, 1)]
            low, high = (64 * k + (8 * c + r if trans else 8 * r + c) for r, c in pairs)
            assert found[lane * count + k] == low | high << 16


def test_a_row_of_a_matrix_lies_on_16_bytes() -> None:
    body = "mov.u32 %r1, space; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1+8];"
    with pytest.raises(machine.Fault, match="no multiple of 16 bytes"):
        run(body, declarations=SPACE)
