"""The memories of the PTX machine: spaces, bounds, alignment, garbage, races, atomics."""

from __future__ import annotations

import pytest

from tests.ptx_machine import machine
from tests.ptx_machine.handwritten import run

pytestmark = pytest.mark.skipif(bool(machine.missing_reason()), reason=str(machine.missing_reason()))

LANES = list(range(32))
STORE = "st.global.u32 [%own], %r1;"
SPACE = ".shared .align 16 .b8 space[512];"
IN_SPACE = """
      mov.u32 %r10, space;
      shl.b32 %r11, %t, 2;
      add.u32 %r12, %r10, %r11;
"""


# ------------------------------------------------------------------------------ spaces, bounds, alignment


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.u32 %r1, [%own+384];", "256 bytes past the end of a tensor of 128 bytes"),
        (
            "ld.global.u32 %r1, [%own+4];",
            r"thread \(31, 0, 0\).* 0 bytes past the end of a tensor of 128 bytes",
        ),
        ("ld.global.u32 %r1, [%own-4];", r"thread \(0, 0, 0\).* 4 bytes before a tensor"),
        ("st.global.v2.u32 [%memory+124], {%t, %t};", "no multiple of the access's 8 bytes"),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%memory+8];", "no multiple of the access's 16 bytes"),
        ("ld.global.u16 %h1, [%memory+1];", "no multiple of the access's 2 bytes"),
        ("ld.shared.u32 %r1, [0];", "an address outside shared memory: 0x0"),
        ("ld.shared.u32 %r1, [%memory];", "an address outside shared memory"),
        ("mov.u32 %r1, space; st.shared.u32 [%r1+512], %t;", "an address outside the shared variables"),
        ("mov.u32 %r1, space; st.shared.u32 [%r1+-4], %t;", "an address outside"),
        ("mov.u32 %r1, space; st.shared.v2.u32 [%r1+4], {%t, %t};", "no multiple of the access's 8 bytes"),
        ("mov.u64 %d1, space; st.global.u32 [%d1], %t;", "a global access to 0x400, in no tensor"),
        ("mov.u64 %d1, space; cvta.shared.u64 %d1, %d1; st.global.u32 [%d1], %t;", "to an address of shared"),
        ("mov.u64 %d1, space; cvta.shared.u64 %d1, %d1; ld.shared.u32 %r1, [%d1];", "outside shared memory"),
        ("mov.u64 %d1, space; ld.u32 %r1, [%d1];", "a global access to 0x400"),
        ("st.global.u32 [%d1], %t;", "the address has never been given a value"),
    ],
)
def test_accesses_that_hardware_refuses(body: str, message: str) -> None:
    with pytest.raises(machine.Fault, match=message):
        run(body, declarations=SPACE)


def test_generic_addresses_find_their_space() -> None:
    body = """
      mov.u64 %d1, space;
      cvta.shared.u64 %d1, %d1;
      mad.wide.u32 %d1, %t, 4, %d1;
      st.u32 [%d1], %t;
      bar.sync 0;
      xor.b32 %r2, %t, 1;
      shl.b32 %r2, %r2, 2;
      mov.u32 %r3, space;
      add.u32 %r3, %r3, %r2;
      ld.shared.u32 %r1, [%r3];
      st.u32 [%own], %r1;"""
    assert run(body, declarations=SPACE) == [t ^ 1 for t in LANES]


def test_global_variables_have_their_values() -> None:
    outside = ".global .align 4 .u32 table[4] = {5, 6, 7, 8};"
    body = f"""
      mov.u64 %d1, table;
      and.b32 %r2, %t, 3;
      mad.wide.u32 %d1, %r2, 4, %d1;
      ld.global.u32 %r1, [%d1];
      {STORE}"""
    assert run(body, outside=outside) == [5 + t % 4 for t in LANES]


def test_shared_memory_of_the_launch() -> None:
    outside = ".extern .shared .align 16 .b8 dynamic[];"
    body = f"""
      mov.u32 %r2, dynamic;
      shl.b32 %r3, %t, 2;
      add.u32 %r2, %r2, %r3;
      st.shared.u32 [%r2], %t;
      ld.shared.u32 %r1, [%r2];
      {STORE}"""
    assert run(body, outside=outside, shared=128) == LANES
    with pytest.raises(machine.Fault, match=r"thread \(31, 0, 0\).*outside the shared variables"):
        run(body, outside=outside, shared=124)


# ---------------------------------------------------------------------------------------------- garbage


@pytest.mark.parametrize(
    "body",
    [
        "add.u32 %r1, %r2, 1;",
        "mov.u32 %r2, 1; @%p9 mov.u32 %r1, 2;".replace("@%p9", "setp.lt.u32 %p9, %t, 31; @%p9"),
        f"{IN_SPACE} ld.shared.u32 %r1, [%r12];",
        f"{IN_SPACE} st.shared.u16 [%r12], %t; ld.shared.u32 %r1, [%r12];",
        f"{IN_SPACE} st.shared.u32 [%r12], %r2; ld.shared.u32 %r1, [%r12];",
        "setp.lt.u32 %p1, %t, 3; selp.u32 %r1, %t, %r2, %p1;",
        "mov.b32 %r1, {%h1, %h2};",
        "setp.lt.u32 %p9, %t, 31; @%p9 mov.u16 %h1, 2; mov.u16 %h2, 1; mov.b32 %r1, {%h1, %h2};",
    ],
)
def test_garbage_must_not_be_stored(body: str) -> None:
    with pytest.raises(machine.Fault, match="value to store has never been given a value"):
        run(body + STORE, declarations=SPACE)


@pytest.mark.parametrize(
    "body",
    [
        f"{IN_SPACE} ld.shared.u32 %r2, [%r12]; selp.u32 %r1, %r2, 1, 0;".replace("1, 0;", "1, %p1;"),
        f"{IN_SPACE} st.shared.u16 [%r12], %t; ld.shared.u16 %r2, [%r12]; mov.u32 %r1, 1;",
        "mov.u32 %r1, 1; add.u32 %r3, %r4, %r5; shl.b32 %r3, %r3, 2;",
        "mov.u16 %h2, 1; mov.b32 %r2, {%h1, %h2}; shr.u32 %r1, %r2, 16;",  # nothing writes %h1 at all
    ],
)
def test_garbage_may_be_computed_with(body: str) -> None:
    body = f"setp.gt.u32 %p1, %t, 31; {body} {STORE}"
    assert run(body, declarations=SPACE) == [1] * 32


def test_garbage_does_not_outlive_a_block() -> None:
    body = f"""{IN_SPACE}
      setp.eq.u32 %p1, %b, 0;
      @%p1 st.shared.u32 [%r12], %t;
      ld.shared.u32 %r1, [%r12];
      {STORE}"""
    with pytest.raises(machine.Fault, match=r"block \(1, 0, 0\), thread \(0, 0, 0\).*value to store"):
        run(body, blocks=2, declarations=SPACE)


# ------------------------------------------------------------------------- races between warps of a block

WRITE, READ = "st.shared.u32 [%r12], %t;", "ld.shared.u32 %r1, [%r13];"  # its own word; the other warp's
RACES = {
    "read after write": f"{WRITE} BARRIER {READ}",
    "write after read": f"{WRITE} bar.sync 0; {READ} BARRIER {WRITE}",
    "write after write": f"{WRITE} BARRIER st.shared.u32 [%r13], 5; mov.u32 %r1, 0;",
    "narrow read after write": f"{WRITE} BARRIER ld.shared.u16 %r1, [%r13];",
    "narrow write after read": f"{WRITE} bar.sync 0; {READ} BARRIER st.shared.u16 [%r12], 5;",
    "atomic after write": f"{WRITE} BARRIER atom.shared.add.u32 %r1, [%r13], 5;",
    "read after atomic": f"{WRITE} bar.sync 0; atom.shared.add.u32 %r2, [%r12], 5; BARRIER {READ}",
    "vector read after write": f"""{WRITE} BARRIER
      and.b32 %r14, %r13, 0xfffffff8; ld.shared.v2.u32 {{%r1, %r2}}, [%r14];""",
}


def _race(name: str, barrier: str, seed: int) -> list[int]:
    crossed = f"{IN_SPACE} xor.b32 %r11, %r11, 128; add.u32 %r13, %r10, %r11; {RACES[name]} {STORE}"
    return run(crossed.replace("BARRIER", barrier), threads=64, declarations=SPACE, seed=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(RACES))
def test_races(name: str, seed: int) -> None:
    _race(name, "bar.sync 0;", seed)
    # Where the reader comes first it finds garbage.
    with pytest.raises(machine.Fault, match=r"with no barrier in between|never been given a value"):
        _race(name, "", seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "body",
    [
        "st.shared.u32 [%r10], 5; mov.u32 %r1, 5;",  # every warp stores the same
        "bar.warp.sync -1; st.shared.u32 [%r12], 5; bar.warp.sync -1; ld.shared.u32 %r1, [%r12];",  # its own
        # The warps' halves of one word.
        """mov.u32 %r1, 5; setp.eq.u32 %p1, %t, 0; setp.eq.u32 %p2, %t, 32;
        @%p1 st.shared.u16 [%r10], 5; @%p2 st.shared.u16 [%r10+2], 5;
        @%p1 ld.shared.u16 %r1, [%r10]; @%p2 ld.shared.u16 %r1, [%r10+2];""",
        "st.shared.u32 [%r10], 5; bar.sync 0; ld.shared.u32 %r1, [%r10]; st.shared.u32 [%r12+128], 6;",
    ],
)
def test_what_is_no_race(body: str, seed: int) -> None:
    assert run(IN_SPACE + body + STORE, threads=64, declarations=SPACE, seed=seed) == [5] * 64


# ---------------------------------------------------------------------------------------------- atomics


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        ("add.u32", 3, 3 + sum(range(128))),
        ("max.s32", -5, 127),
        ("min.s32", 9, 0),
        ("or.b32", 128, 255),
        ("and.b32", -1, 0),
        ("xor.b32", 5, 5),
        ("inc.u32", 0, None),
    ],
)
def test_atomics_of_all_blocks(operation: str, before: int, after: int | None, seed: int) -> None:
    body = f"red.global.{operation} [%memory], %i;"
    if operation == "inc.u32":
        body, after = "red.global.inc.u32 [%memory], 99;", 128 % 100
    assert run(body, blocks=2, threads=64, data=[before], seed=seed) == [after]


def test_an_atomic_gives_the_old_value() -> None:
    body = f"atom.global.add.u32 %r1, [%memory+128], 1; {STORE}"
    assert sorted(run(body, data=[0] * 33)) == [*range(32), 32]


def test_compare_and_swap() -> None:
    body = f"atom.global.cas.b32 %r1, [%memory+128], 7, %t; {STORE}"
    assert run(body, data=[0] * 32 + [7]) == [7] + [0] * 32


def test_atomics_in_shared_memory() -> None:
    body = f"""{IN_SPACE}
      st.shared.u32 [%r10], 0;
      bar.sync 0;
      atom.shared.add.u32 %r2, [%r10], 1;
      bar.sync 0;
      ld.shared.u32 %r1, [%r10];
      {STORE}"""
    assert run(body, threads=96, declarations=SPACE) == [96] * 96
    with pytest.raises(machine.Fault, match="an atomic on shared memory that has never been given a value"):
        run(body.replace("st.shared.u32 [%r10], 0;", ""), threads=96, declarations=SPACE)
