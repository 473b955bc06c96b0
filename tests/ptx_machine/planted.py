"""Mistakes planted in the PTX that nvcc made of this library, one at a time, and what finds each.

A mistake is an edit of one kernel's text. Three tools look at the edited kernel, in this order:

- ``machine``: the PTX machine stops with a fault;
- ``result``: the result is far from that of float64;
- ``seeds``: the results of different orders of warps and blocks differ.

``python -m tests.ptx_machine.planted`` prints which tool finds which. ``EMULATOR`` says which kinds the
emulator of the sources sees as well, when the mistake is in the source.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pyops
from pyops import functional as F

from . import nvcc
from .faults import APART, GARBAGE, HALF_A_WARP, RACE, TOO_SOON, Call, Planted, detect, normal

# ------------------------------------------------------------------------- what exercises the kernels

_T = torch.nn.functional
_BF16 = torch.bfloat16
_TARGETS = torch.arange(700) % 5


def _recurrent(layer: type[torch.nn.Module], hidden: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    def run(x: Tensor) -> Tensor:
        torch.manual_seed(5)
        module = layer(8, hidden).to(dtype).to(x.dtype)
        return module(x)[0]

    return run


def _norm(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, w, b: function(x, None, None, w, b, training=True)


CALLS = {
    "softmax": Call(lambda x: F.softmax(x, 1), lambda x: _T.softmax(x, 1), [normal(2, 20000)]),
    "softmax_columns": Call(lambda x: F.softmax(x, 0), lambda x: _T.softmax(x, 0), [normal(300, 40)]),
    "cross_entropy": Call(
        lambda x: F.cross_entropy(x, _TARGETS[:6]),
        lambda x: _T.cross_entropy(x, _TARGETS[:6]),
        [normal(6, 3000)],
    ),
    "nll_loss": Call(lambda x: F.nll_loss(x, _TARGETS), lambda x: _T.nll_loss(x, _TARGETS), [normal(700, 5)]),
    "batch_norm": Call(
        _norm(F.batch_norm), _norm(_T.batch_norm), [normal(8, 5, 12, 12), normal(5), normal(5)]
    ),
    "conv2d": Call(
        lambda x, w: F.conv2d(x, w, padding=1),
        lambda x, w: _T.conv2d(x, w, padding=1),
        [normal(2, 64, 9, 9, dtype=_BF16), normal(24, 64, 3, 3, dtype=_BF16)],
        error=2e-2,
    ),
    "conv2d_max_pool2d": Call(
        lambda x, w: F.conv2d_max_pool2d(x, w, None, kernel_size=2, padding=1),
        lambda x, w: _T.max_pool2d(_T.conv2d(x, w, padding=1), 2),
        [normal(2, 32, 8, 8, dtype=_BF16), normal(24, 32, 3, 3, dtype=_BF16)],
        error=2e-2,
    ),
    "linear": Call(
        lambda x, w, b: F.linear(x, w, b, activation="relu"),
        lambda x, w, b: _T.linear(x, w, b).relu(),
        [normal(300, 40), normal(50, 40), normal(50)],
    ),
    "prelu": Call(F.prelu, _T.prelu, [normal(7, 5, 9, 9), normal(5)]),
    "lstm": Call(
        _recurrent(pyops.nn.LSTM, 60, torch.float32),
        _recurrent(torch.nn.LSTM, 60, torch.float32),
        [normal(3, 9, 8)],
    ),
    "lstm_grid": Call(
        _recurrent(pyops.nn.LSTM, 272, _BF16),
        _recurrent(torch.nn.LSTM, 272, _BF16),
        [normal(4, 18, 8, dtype=_BF16)],
        error=3e-2,
    ),
}


# ----------------------------------------------------------------------------------------- mistakes

BARRIER = r"bar\.sync 0;"
RETURN_EARLY = (
    r"{ .reg .pred %half; .reg .b32 %x; mov.u32 %x, %tid.x; setp.lt.u32 %half, %x, 16; @%half ret; } \g<0>"
)
BFLY = r"shfl\.sync\.bfly"
FULL_MASK = r"(mov\.[bu]32 \s*%r\d+, )-1;"
ROWS, NORM = "softmax_forward_kernelI.*Contiguous", "batch_norm_forward_kernelIf"
LOSS, LOOP = "nll_loss_forward", "loop_forwardI.*LstmCell"
STRIDED = "softmax_forward_kernelI.*ColumnRows"
CONV, WEIGHT = "conv2d_correlate_kernelI.*bfloat16", "conv2d_weight_kernelI.*bfloat16"
POOL, GRID = "conv2d_pool_kernelI.*bfloat16", "grid_backwardI.*bfloat16.*LstmCell"
COLUMNS = "bias_gradient_columns_kernelI.*Relu"
MMA = r"(mma\.sync\.\S+ \{[^}]*\}, )\{(%r\d+), (%r\d+), (%r\d+), (%r\d+)\}, \{(%r\d+), (%r\d+)\}"
GENERIC = r"{ .reg .b64 %g; cvt.u64.u32 %g, \1; cvta.shared.u64 %g, %g; st.global.wb.v4.u32 [%g], \2; }"

#: Whether the emulator can see a mistake of the kind. It has one kind of memory, copies at once and sees
#: every store at once, aligned or not; fragments and matrix loads are functions of its own.
EMULATOR = {
    "state space": False,
    "missing barrier": True,
    "divergent barrier": True,
    "wait count": False,
    "fragment": False,
    "misaligned": False,
    "shuffle": True,
    "garbage": True,
    "other blocks": False,
    "bounds": True,
}

FAULTS: dict[str, Planted] = {
    # The store that batch norm once had, which no GPU would have let pass.
    "stash_by_a_global_store": Planted(
        "state space", "batch_norm", NORM, r"st\.shared\.v4\.u32 \[(%r\d+)\], (\{[^}]*\});", GENERIC,
        "batch_norm", "machine", "a global access to an address of shared memory"),
    "pool_tile_by_a_global_store": Planted(
        "state space", "conv2d_max_pool2d", POOL, r"st\.shared\.", "st.global.",
        "conv2d_max_pool2d", "machine", "a global access to"),
    "weights_by_a_global_load": Planted(
        "state space", "grid", GRID, r"ld\.shared\.v4", "ld.global.v4",
        "lstm_grid", "machine", "a global access to"),
    "states_by_constant_loads": Planted(
        "state space", "grid", GRID, r"ld\.global\.cg\.v4\.u32", "ld.global.nc.v4.u32",
        "lstm_grid", "machine", "this launch has stored", which=None),
    "rows_without_a_barrier": Planted(
        "missing barrier", "softmax", ROWS, BARRIER, "", "softmax", "machine", TOO_SOON),
    "columns_without_a_barrier": Planted(
        "missing barrier", "softmax", STRIDED, BARRIER, "", "softmax_columns", "machine", TOO_SOON),
    "norm_without_a_barrier": Planted(
        "missing barrier", "batch_norm", NORM, BARRIER, "", "batch_norm", "machine", RACE, which=1),
    "tile_without_a_barrier": Planted(
        "missing barrier", "correlate", CONV, BARRIER, "", "conv2d", "machine", TOO_SOON),
    "bias_without_a_barrier": Planted(
        "missing barrier", "dropout", COLUMNS, BARRIER, "", "linear", "machine", TOO_SOON, which=1),
    "lstm_without_a_barrier": Planted(
        "missing barrier", "recurrent", LOOP, BARRIER, "", "lstm", "machine", RACE, which=2),
    "blocks_told_before_a_barrier": Planted(
        "missing barrier", "grid", GRID, BARRIER, "", "lstm_grid", "result", which=2),
    "rows_barrier_for_half_a_warp": Planted(
        "divergent barrier", "softmax", ROWS, BARRIER, HALF_A_WARP, "softmax", "machine", APART),
    "loss_barrier_for_half_a_warp": Planted(
        "divergent barrier", "nll_loss", LOSS, BARRIER, HALF_A_WARP,
        "nll_loss", "machine", APART),
    "norm_returns_before_a_barrier": Planted(
        "divergent barrier", "batch_norm", NORM, BARRIER, RETURN_EARLY,
        "batch_norm", "machine", "have exited"),
    "one_group_too_few": Planted(
        "wait count", "correlate", CONV, r"wait_group 2;", "wait_group 3;",
        "conv2d", "machine", TOO_SOON),
    "weights_one_group_too_few": Planted(
        "wait count", "weight", WEIGHT, r"wait_group 2;", "wait_group 3;",
        "conv2d", "machine", TOO_SOON),
    "no_wait": Planted(
        "wait count", "conv2d_max_pool2d", POOL, r"cp\.async\.wait_group [123];", "",
        "conv2d_max_pool2d", "machine", TOO_SOON),
    "no_commit": Planted(
        "wait count", "correlate", CONV, r"cp\.async\.commit_group;", "",
        "conv2d", "machine", TOO_SOON, which=None),
    "operands_registers_swapped": Planted(
        "fragment", "correlate", CONV, MMA, r"\1{\2, \4, \3, \5}, {\6, \7}",
        "conv2d", "result", which=None),
    "halves_of_a_fragment_swapped": Planted(
        "fragment", "grid", GRID, MMA, r"\1{\2, \3, \4, \5}, {\7, \6}",
        "lstm_grid", "result", which=None),
    "matrices_transposed": Planted(
        "fragment", "correlate", CONV, r"(ldmatrix\S*)(\.shared\.b16)", r"\1.trans\2", "conv2d", "result"),
    "matrices_not_transposed": Planted(
        "fragment", "weight", WEIGHT, r"\.trans\.", ".", "conv2d", "result"),
    "row_of_another_lane": Planted(
        "fragment", "correlate", CONV, r"(ldmatrix[^[]*\[%r\d+)\]", r"\1+16]", "conv2d", "result"),
    "product_of_another_type": Planted(
        "fragment", "conv2d_max_pool2d", POOL, r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32",
        "conv2d_max_pool2d", "result", which=None),
    "misaligned_vector_load": Planted(
        "misaligned", "batch_norm", NORM, r"(ld\.shared\.v4\.f32 \{[^}]*\}, \[%r\d+)\]", r"\1+4]",
        "batch_norm", "machine", "no multiple of the access's 16 bytes"),
    "misaligned_vector_store": Planted(
        "misaligned", "softmax", ROWS, r"(st\.global\.v4\.u32 \[%rd\d+)\]", r"\1+4]",
        "softmax", "machine", "no multiple of the access's 16 bytes", which=None),
    "misaligned_copy": Planted(
        "misaligned", "correlate", CONV, r"(cp\.async\.cg\.shared\.global \[%r\d+)\]", r"\1+8]",
        "conv2d", "machine", "no multiple of the copy's 16 bytes"),
    "misaligned_matrix_row": Planted(
        "misaligned", "conv2d_max_pool2d", POOL, r"(ldmatrix[^[]*\[%r\d+)\]", r"\1+8]",
        "conv2d_max_pool2d", "machine", "no multiple of 16 bytes"),
    "mask_without_the_last_lane": Planted(
        "shuffle", "softmax", ROWS, FULL_MASK, r"\g<1>0x7fffffff;",
        "softmax", "machine", "mask of its own warp operation"),
    "mask_without_the_first_lane": Planted(
        "shuffle", "batch_norm", NORM, FULL_MASK, r"\g<1>-2;",
        "batch_norm", "machine", "mask of its own warp operation"),
    "sum_shuffled_up": Planted(
        "shuffle", "softmax", ROWS, BFLY, "shfl.sync.up", "softmax", "result", which=2),
    "loss_shuffled_up": Planted(
        "shuffle", "nll_loss", LOSS, BFLY, "shfl.sync.up", "nll_loss", "result", which=None),
    "no_store_to_shared_memory": Planted(
        "garbage", "softmax", ROWS, r"st\.shared\.f32 [^;]*;", "", "softmax", "machine", GARBAGE),
    "norm_keeps_nothing": Planted(
        "garbage", "batch_norm", NORM, r"st\.shared\.v4[^;]*;", "", "batch_norm", "machine", GARBAGE),
    "no_initial_state": Planted(
        "garbage", "recurrent", LOOP, r"st\.shared\.f32 [^;]*;", "", "lstm", "machine", GARBAGE),
    "condition_negated": Planted(
        "garbage", "softmax", ROWS, r"(bar\.sync 0;[^@]*)@(%p\d+ bra)", r"\1@!\2", "softmax", "result"),
    "no_fence": Planted(
        "other blocks", "grid", GRID, r"fence\.acq_rel\.gpu;", "", "lstm_grid", "result"),
    "fence_of_the_block_only": Planted(
        "other blocks", "grid", GRID, r"fence\.acq_rel\.gpu;", "fence.acq_rel.cta;", "lstm_grid", "result"),
    "counted_twice": Planted(
        "other blocks", "grid", GRID, r"(red\.relaxed\.gpu\.global\.add\.u32 \[%rd\d+\]), 1;", r"\1, 2;",
        "lstm_grid", "seeds"),
    "counter_read_by_a_plain_load": Planted(
        "other blocks", "grid", GRID, r"ld\.acquire\.gpu\.global\.u32", "ld.global.u32", "lstm_grid",
        "machine", "deadlock"),
    "one_row_too_many": Planted(
        "bounds", "softmax", STRIDED, r"setp\.ge\.s64", "setp.gt.s64",
        "softmax_columns", "machine", "past the end of a tensor", which=None),
    "columns_not_guarded": Planted(
        "bounds", "dropout", COLUMNS, r"@%p4 bra [^;]*;", "",
        "linear", "machine", "past the end of a tensor"),
    "copies_from_outside_the_image": Planted(
        "bounds", "correlate", CONV, r"(cp\.async\.ca\.shared\.global \S+ \S+ 16), %r\d+;", r"\1;",
        "conv2d", "result", which=None),
}  # fmt: skip


def plant(fault: Planted) -> tuple[str | None, str]:
    """The tool that finds the fault in place, and what it says."""
    with nvcc.replaced(fault.source, fault.edit):
        return detect(CALLS[fault.call])


if __name__ == "__main__":
    for name, fault in FAULTS.items():
        tool, message = plant(fault)
        emulator = "emulator too" if EMULATOR[fault.kind] else ""
        print(f"{fault.kind:18} {name:34} {fault.source:18} {tool or 'none':8} {emulator:13} {message[-90:]}")
