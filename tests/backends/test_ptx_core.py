"""The PTX machine reads PTX as its manual has it, and lanes part and meet again."""

from __future__ import annotations

import struct

import pytest
import torch

from tests.ptx_machine import machine
from tests.ptx_machine.handwritten import module, run

pytestmark = pytest.mark.skipif(bool(machine.missing_reason()), reason=str(machine.missing_reason()))

LANES = list(range(32))
STORE = "st.global.u32 [%own], %r1;"


def bits(x: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", x))[0])


# ------------------------------------------------------------------------------------------------ the text


def test_registers_of_inner_braces_are_others() -> None:
    body = """
      mov.u32 %r1, 1;
      {
        .reg .b32 tmp, %r<4>;
        mov.u32 tmp, 5;
        mov.u32 %r1, tmp;   // the inner one
      }
      {
        .reg .b32 tmp;
        mov.u32 tmp, 7;
        add.u32 %r1, %r1, tmp;
      }
      st.global.u32 [%own], %r1;"""
    assert run(body) == [8] * 32


def test_registers_of_a_closed_scope_are_unknown() -> None:
    with pytest.raises(machine.Fault, match="unknown register tmp"):
        run("{ .reg .b32 tmp; mov.u32 tmp, 5; }\nmov.u32 %r1, tmp;")


def test_a_scope_that_is_entered_again_keeps_nothing_it_should_not() -> None:
    body = """
      {
        .reg .b32 tmp;
        add.u32 %r1, tmp, 1;
      }
      st.global.u32 [%own], %r1;"""
    with pytest.raises(machine.Fault, match="value to store has never been given a value"):
        run(body)


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("0f3F800000", bits(1.0)),
        ("0Fbf000000", bits(-0.5)),
        ("12", 12),
        ("-12", -12),
        ("0x1F", 31),
        ("0xffffffffU", -1),
        ("0b101", 5),
        ("017", 15),
    ],
)
def test_literals(literal: str, value: int) -> None:
    assert run(f"mov.b32 %r1, {literal};{STORE}") == [value] * 32


def test_a_double_literal() -> None:
    body = "mov.f64 %g1, 0d3FF8000000000000; cvt.rn.f32.f64 %f1, %g1; st.global.f32 [%own], %f1;"
    assert run(body) == [bits(1.5)] * 32


def test_a_literal_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(machine.Fault, match="a constant of the wrong width"):
        run("mov.f32 %f1, 0d3FF8000000000000;")


def test_vectors_and_the_sink() -> None:
    body = """
      setp.lt.u32 %p1, %t, 31;
      @%p1 mov.u32 %r2, 3;
      mov.b64 %d1, {%t, %r2};
      mov.b64 {%r3, _}, %d1;
      mov.b32 %r4, 0x00030001;
      mov.b32 {%h1, %h2}, %r4;
      mov.b32 %r5, {%h2, %h1};
      shl.b32 %r6, %t, 4;
      cvt.u64.u32 %d2, %r6;
      add.s64 %d3, %memory, %d2;
      st.global.v4.b32 [%d3], {%r3, %r5, 9, %t};
      ld.global.v2.b32 {_, %r7}, [%d3+8];
      st.global.b32 [%d3+8], %r7;"""
    # Half of the last lane's %d1 has no value, and so none of what is taken from it.
    with pytest.raises(machine.Fault, match=r"thread \(31, 0, 0\).*value to store"):
        run(body, data=[-1] * 128)
    expected = [value for t in LANES for value in (t, 0x00010003, t, t)]
    assert run(body.replace("{%t, %r2}", "{%t, 3}"), data=[-1] * 128) == expected


def test_labels_comments_pragmas_and_negative_offsets() -> None:
    body = """
      .pragma "nounroll";
      mov.u32 %r1, 0; /* several
      lines */
      bra.uni $L__end; // a jump
      mov.u32 %r1, 1;
    $L__end:
      add.s64 %d1, %own, 64;
      st.global.u32 [%d1+-64], %r1;"""
    assert run(body) == [0] * 32


def test_guards() -> None:
    body = f"""
      setp.lt.u32 %p1, %t, 7;
      mov.u32 %r1, 0;
      @%p1 mov.u32 %r1, 1;
      @!%p1 add.u32 %r1, %r1, 5;
      {STORE}"""
    assert run(body) == [1 if t < 7 else 5 for t in LANES]


def test_a_guard_without_a_value_is_a_fault() -> None:
    with pytest.raises(machine.Fault, match="guard of the instruction has never been given a value"):
        run("@%p1 mov.u32 %r1, 1;")


@pytest.mark.parametrize(
    ("compare", "p", "q"),
    [
        ("setp.lt.s32 %p1|%p2, %t, 8;", lambda t: t < 8, lambda t: t >= 8),
        ("setp.lt.and.s32 %p1|%p2, %t, 8, %p3;", lambda t: t < 8 and t & 1, lambda t: t >= 8 and t & 1),
        ("setp.lt.or.s32 %p1|%p2, %t, 8, !%p3;", lambda t: t < 8 or not t & 1, lambda t: t >= 8 or not t & 1),
        ("setp.lt.xor.s32 %p1|%p2, %t, 8, %p3;", lambda t: (t < 8) != (t & 1), lambda t: (t >= 8) != (t & 1)),
        ("setp.ne.and.b32 %p1, %t, 4, %p3; mov.pred %p2, !%p1;", lambda t: t & 1, lambda t: not t & 1),
    ],
)
def test_both_results_of_a_comparison(compare: str, p: object, q: object) -> None:
    body = f"""
      and.b32 %r2, %t, 1;
      setp.eq.u32 %p3, %r2, 1;
      {compare}
      selp.u32 %r3, 1, 0, %p1;
      selp.u32 %r4, 2, 0, %p2;
      or.b32 %r1, %r3, %r4;
      {STORE}"""
    assert run(body) == [bool(p(t)) + 2 * bool(q(t)) for t in LANES]


def test_a_wide_register_takes_a_narrow_conversion() -> None:
    body = f"""
      mov.u32 %r2, 0xffff81fe;
      cvt.s32.s8 %r3, %r2;
      cvt.u32.u8 %r4, %r2;
      cvt.s64.s16 %d1, %r2;
      cvt.u32.u64 %r5, %d1;
      add.s32 %r1, %r3, %r4;
      add.s32 %r1, %r1, %r5;
      {STORE}"""
    low = 0x81FE - 0x10000
    assert run(body) == [-2 + 254 + low] * 32


def test_a_conversion_reads_the_lower_bits_of_a_wide_register() -> None:
    body = f"""
      mov.b64 %d1, 0x7fffffff80000001;
      cvt.s64.s32 %d1, %d1;
      shr.u64 %d1, %d1, 32;
      cvt.u32.u64 %r1, %d1;
      {STORE}"""
    assert run(body) == [-1] * 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frobnicate.b32 %r1, %r2;", "unknown instruction"),
        ("add.s32 %r1, %r2;", "wrong number of operands"),
        ("add.s32 %r1, %r2, %p1;", "is a predicate"),
        ("add.s32 %r1, %d1, %r2;", "%d1 has 64 bits, not 32"),
        ("st.global.u64 [%own], %r1;", "narrower than the access"),
        ("bra nowhere;", "unknown label nowhere"),
        ("bar.sync 1;", "only barrier 0"),
        ("mov.u32 %r1, 1", "expected"),
        ("atom.global.add.f32 %f1, [%own], %f2;", "unknown instruction"),
    ],
)
def test_text_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(machine.Fault, match=message):
        module(text).decode("kernel")


def test_kernels_with_local_memory_are_refused() -> None:
    with pytest.raises(machine.Fault, match="local memory"):
        module("", declarations=".local .align 4 .b8 stack[16];")


# --------------------------------------------------------------------------------- lanes part and meet


NESTED = f"""
      mov.u32 %r1, 0;
      setp.lt.u32 %p1, %t, 16;
      @%p1 bra $low;
      setp.lt.u32 %p2, %t, 24;
      @%p2 bra $third;
      add.u32 %r1, %r1, 4;
      bra $high;
    $third:
      add.u32 %r1, %r1, 3;
    $high:
      add.u32 %r1, %r1, 100;
      bra $join;
    $low:
      add.u32 %r1, %r1, 1;
    $join:
      activemask.b32 %r2;
      popc.b32 %r3, %r2;
      mad.lo.u32 %r1, %r3, 1000, %r1;
      {STORE}"""


def test_nested_branches_meet_again() -> None:
    found = run(NESTED)
    assert found == [32000 + (1 if t < 16 else 103 if t < 24 else 104) for t in LANES]


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_seed_changes_who_waits_for_whom_but_no_lane(seed: int) -> None:
    found = run(NESTED, seed=seed)
    assert [x % 1000 for x in found] == [1 if t < 16 else 103 if t < 24 else 104 for t in LANES]


def test_some_seed_does_not_wait_for_lanes_to_meet() -> None:
    assert any(min(run(NESTED, seed=seed)) < 32000 for seed in range(1, 9))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loops_of_different_lengths(seed: int) -> None:
    body = f"""
      mov.u32 %r1, 0;
      mov.u32 %r2, 0;
    $loop:
      setp.ge.u32 %p1, %r2, %t;
      @%p1 bra $end;
      add.u32 %r1, %r1, %r2;
      add.u32 %r2, %r2, 1;
      bra $loop;
    $end:
      {STORE}"""
    assert run(body, threads=45, seed=seed) == [t * (t - 1) // 2 for t in range(45)]


def test_some_lanes_return_and_the_others_go_on() -> None:
    body = f"setp.gt.u32 %p1, %t, 9; @%p1 ret; mov.u32 %r1, 3; {STORE}"
    assert run(body) == [3 if t < 10 else -1 for t in LANES]


def test_trap_is_a_fault_of_its_lane() -> None:
    with pytest.raises(machine.Fault, match=r"thread \(5, 0, 0\), trap .*: trap"):
        run("setp.eq.u32 %p1, %t, 5; @%p1 trap;")


# -------------------------------------------------------------------------------- where a fault says it is


def test_a_fault_names_kernel_place_block_and_thread() -> None:
    body = """
      .loc 1 42 7
      setp.eq.u32 %p1, %i, 70;
      mov.u64 %d1, 16;
      @%p1 ld.global.u32 %r1, [%d1];"""
    place = r"kernel.cu:42, line \d+ of the PTX"
    text = rf"kernel: block \(1, 0, 0\), thread \(6, 0, 0\), ld.global.u32 \({place}\): "
    with pytest.raises(machine.Fault, match=text + "a global access to 0x10, in no tensor"):
        run(body, blocks=2, threads=64)


# --------------------------------------------------------------------------------------------- launches


EMPTY = "mov.u32 %r1, 0;"


@pytest.mark.parametrize("threads", [0, 1025])
def test_a_block_has_1_to_1024_threads(threads: int) -> None:
    with pytest.raises(machine.Fault, match="1 to 1024 threads"):
        run(EMPTY, threads=threads, data=[0])


@pytest.mark.parametrize(
    ("bounds", "threads", "fits"),
    [
        (".maxntid 64, 1, 1", 32, True),
        (".maxntid 64", 96, False),
        (".reqntid 64", 64, True),
        (".reqntid 64", 32, False),
    ],
)
def test_threads_that_the_kernel_was_compiled_for(bounds: str, threads: int, fits: bool) -> None:
    kernel = module(EMPTY, bounds=bounds)
    if fits:
        run(kernel, threads=threads)
    else:
        with pytest.raises(machine.Fault, match="compiled for 64"):
            run(kernel, threads=threads)


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, 65536, 1), (1, 1, 65536)])
def test_grids_that_do_not_exist(grid: tuple[int, int, int]) -> None:
    with pytest.raises(machine.Fault, match="grid"):
        module(EMPTY).run("kernel", grid, (32,), [bytes(8)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "0 arguments for a kernel of 1"), ([bytes(4)], "argument 0 has 4 bytes, the kernel's parameter 8")],
)
def test_arguments_have_the_parameters_sizes(arguments: list[bytes], message: str) -> None:
    with pytest.raises(machine.Fault, match=message):
        module(EMPTY).run("kernel", (1,), (32,), arguments)


def test_an_unknown_kernel() -> None:
    with pytest.raises(machine.Fault, match="has no kernel other"):
        module(EMPTY).run("other", (1,), (32,), [bytes(8)])


@pytest.mark.parametrize(
    ("static", "dynamic", "asked", "fits"),
    [
        (1024, 47 << 10, 48 << 10, True),
        (1024, (47 << 10) + 1, 48 << 10, False),
        (1024, 100 << 10, 100 << 10, True),
        (1024, 101 << 10, 100 << 10, False),
        (1024, 227 << 10, 227 << 10, False),
        (49 << 10, 0, 48 << 10, False),
    ],
)
def test_shared_memory_that_a_kernel_may_take(static: int, dynamic: int, asked: int, fits: bool) -> None:
    kernel = module("mov.u32 %r1, space;", declarations=f".shared .b8 space[{static}];")
    if fits:
        run(kernel, shared=dynamic, max_shared=asked)
    else:
        with pytest.raises(machine.Fault, match="bytes of dynamic shared memory; the kernel may take"):
            run(kernel, shared=dynamic, max_shared=asked)


def test_three_dimensions() -> None:
    text = """
      mov.u32 %r1, %tid.y;
      mov.u32 %r2, %tid.z;
      mov.u32 %r3, %ntid.y;
      mad.lo.u32 %r4, %r2, %r3, %r1;
      mad.lo.u32 %r4, %r4, %r63, %t;
      mov.u32 %r5, %ctaid.y;
      mad.lo.u32 %r4, %r5, 24, %r4;
      mad.wide.u32 %d1, %r4, 4, %memory;
      st.global.u32 [%d1], %r4;"""
    memory = torch.full((48,), -1, dtype=torch.int32)
    machine.allocated(memory.data_ptr(), memory.nbytes)
    module(text).run("kernel", (1, 2), (4, 3, 2), [struct.pack("<Q", memory.data_ptr())])
    machine.freed(memory.data_ptr())
    assert memory.tolist() == list(range(48))
