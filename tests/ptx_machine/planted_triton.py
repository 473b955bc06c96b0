"""Mistakes planted in the PTX that Triton makes of this library's kernels; see ``planted.py``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from pyops import functional as F

from . import machine, triton_driver
from .faults import APART, GARBAGE, HALF_A_WARP, TOO_SOON, Call, Planted, detect, normal

_T = torch.nn.functional
_BF16 = torch.bfloat16


def _call(name: str, inputs: list[Tensor], error: float = 1e-4, **options: object) -> Call:
    ours, torchs = getattr(F, name), getattr(_T, name)
    return Call(
        lambda *x: ours(*x, **options), lambda *x: torchs(*x, **options), inputs, error, backend="triton"
    )


CALLS = {
    "softmax": _call("softmax", [normal(3, 3000)], dim=1),
    "conv2d": _call(
        "conv2d", [normal(2, 64, 9, 9, dtype=_BF16), normal(24, 64, 3, 3, dtype=_BF16)], 2e-2, padding=1
    ),
}

ROWS, CONV, WEIGHT = "_forward_kernel", "_correlate_kernel", "_weight_kernel"
BARRIER = r"bar\.sync\s+0;"

FAULTS: dict[str, Planted] = {
    "rows_without_a_barrier": Planted(
        "missing barrier", "softmax", ROWS, BARRIER, "", "softmax", "machine", TOO_SOON),
    "rows_barrier_for_half_a_warp": Planted(
        "divergent barrier", "softmax", ROWS, BARRIER, HALF_A_WARP, "softmax", "machine", APART),
    "rows_mask_without_the_last_lane": Planted(
        "shuffle", "softmax", ROWS, r"31, -1;", "31, 0x7fffffff;",
        "softmax", "machine", "mask of its own warp operation"),
    "rows_keep_no_maximum": Planted(
        "garbage", "softmax", ROWS, r"@%p\d+ st\.shared\.b32[^;]*;", "", "softmax", "machine", GARBAGE),
    "rows_misaligned_store": Planted(
        "misaligned", "softmax", ROWS, r"(st\.global\.v4\.b32 \[ %rd\d+ \+) 0", r"\1 4",
        "softmax", "machine", "no multiple of the access's 16 bytes"),
    "rows_stored_without_a_mask": Planted(
        "bounds", "softmax", ROWS, r"@%p\d+ (st\.global\.v4)", r"\1",
        "softmax", "machine", "past the end of a tensor", which=None),
    "tile_without_a_barrier": Planted(
        "missing barrier", "conv2d", CONV, BARRIER, "", "conv2d", "machine", TOO_SOON, which=2),
    "one_group_too_few": Planted(
        "wait count", "conv2d", CONV, r"wait_group\s+4;", "wait_group 5;", "conv2d", "machine", TOO_SOON),
    "matrices_not_transposed": Planted(
        "fragment", "conv2d", CONV, r"\.trans\.", ".", "conv2d", "result"),
    "operands_registers_swapped": Planted(
        "fragment", "conv2d", CONV, r"(mma\.sync\S+ \{[^}]*\}, \{ )(%r\d+), (%r\d+)", r"\1\3, \2",
        "conv2d", "result", which=None),
    "copies_from_outside_the_image": Planted(
        "bounds", "conv2d", CONV, r"(0x10), %r\d+;", r"\1;", "conv2d", "machine", "copies from", which=None),
    "tile_by_a_global_store": Planted(
        "state space", "conv2d", WEIGHT, r"st\.shared\.", "st.global.",
        "conv2d", "machine", "a global access to"),
}  # fmt: skip


@contextmanager
def _edited(fault: Planted) -> Iterator[None]:
    """Launches take the edited kernels."""
    run = triton_driver.Launcher._run
    modules: dict[str, machine.Module] = {}

    def run_edited(self: triton_driver.Launcher, grid: tuple[int, int, int], module: machine.Module, *rest):
        text = fault.edit(module.ptx)
        if text != module.ptx and text not in modules:
            modules[text] = machine.Module(text)
        run(self, grid, modules.get(text, module), *rest)

    with mock.patch.object(triton_driver.Launcher, "_run", run_edited):
        yield
    assert modules, "no kernel that ran has what was to be edited"


def plant(fault: Planted) -> tuple[str | None, str]:
    """The tool that finds the fault in place, and what it says."""
    with _edited(fault):
        return detect(CALLS[fault.call])
