"""Small kernels in PTX, written for one rule of the machine each."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import torch

from . import machine

_TEXT = """.version 8.0
.target sm_80
.address_size 64
.file 1 "/somewhere/kernel.cu"
{outside}
.visible .entry kernel(.param .u64 kernel_param_0{parameters})
{bounds}
{{
  .reg .pred %p<16>;
  .reg .b16 %h<16>;
  .reg .b32 %r<64>, %t, %b, %i;
  .reg .b64 %d<32>, %memory, %own;
  .reg .f32 %f<32>;
  .reg .f64 %g<16>;
  {declarations}
  ld.param.u64 %memory, [kernel_param_0];
  mov.u32 %t, %tid.x;
  mov.u32 %b, %ctaid.x;
  mov.u32 %r63, %ntid.x;
  mad.lo.s32 %i, %b, %r63, %t;
  mad.wide.u32 %own, %i, 4, %memory;
{body}
  ret;
}}
"""


def module(
    body: str, *, declarations: str = "", outside: str = "", parameters: str = "", bounds: str = ""
) -> machine.Module:
    """A kernel of ``body``.

    It finds its thread in %t, its block in %b, the number of both in %i, the address of an array in %memory
    and that of this thread's 32-bit word of it in %own. %p, %h, %r, %d, %f and %g are free.
    """
    fill = {"declarations": declarations, "outside": outside, "parameters": parameters, "bounds": bounds}
    return machine.Module(_TEXT.format(body=body, **fill), "handwritten")


def run(
    body: str | machine.Module,
    *,
    blocks: int = 1,
    threads: int = 32,
    data: Iterable[int] | None = None,
    declarations: str = "",
    outside: str = "",
    seed: int = 0,
    shared: int = 0,
    max_shared: int = 48 << 10,
    cooperative: bool = False,
    registers: int = 0,
) -> list[int]:
    """Run the kernel and return its array of 32-bit words.

    Args:
        body: see :func:`module`.
        data: the array before; a -1 for each thread when None.

    Raises:
        machine.Fault: what the kernel did wrong.
    """
    kernel = (
        body if isinstance(body, machine.Module) else module(body, declarations=declarations, outside=outside)
    )
    values = [-1] * (blocks * threads) if data is None else list(data)
    memory = torch.tensor(values, dtype=torch.int32)
    machine.allocated(memory.data_ptr(), memory.nbytes)
    machine.set_seed(seed)
    try:
        kernel.run(
            "kernel",
            (blocks,),
            (threads,),
            [struct.pack("<Q", memory.data_ptr())],
            shared=shared,
            max_shared=max_shared,
            cooperative=cooperative,
            registers=registers,
        )
    finally:
        machine.set_seed(0)
        machine.freed(memory.data_ptr())
    return memory.tolist()


def add_one(
    blocks: int, *, stride: int = 1, threads: int = 128, sample: int = 0
) -> tuple[machine.Launch, list[int]]:
    """Each thread adds 1 to the word with ``stride`` times its number; the launch, and all words."""
    body = f"""
      mul.lo.u32 %r1, %i, {stride};
      mad.wide.u32 %d1, %r1, 4, %memory;
      ld.global.u32 %r2, [%d1];
      add.u32 %r2, %r2, 1;
      st.global.u32 [%d1], %r2;"""
    words = max(threads, blocks * threads * stride)
    with machine.record_launches(sample=sample) as launches:
        written = run(body, blocks=blocks, threads=threads, data=[0] * words, registers=16)
    (launch,) = launches
    return launch, written


def store_shared(stride: int) -> machine.Launch:
    """Each lane stores to shared memory, ``stride`` words from the one before."""
    body = f"""
      mov.u32 %r1, space;
      mad.lo.u32 %r2, %t, {4 * stride}, %r1;
      st.shared.u32 [%r2], %t;"""
    with machine.record_launches() as launches:
        run(
            body, declarations=".shared .align 16 .b8 space[4096];", threads=31
        )  # a 32nd lane would not fit, 33 words apart
    (launch,) = launches
    return launch
