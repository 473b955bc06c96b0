"""Cross-entropy whose classes are shared out among the processes of a group (vocabulary parallel).

Each process reads its logits once forward, and once more backward, when it writes their gradient, with the
kernels of :mod:`pyops.ops.cross_entropy`. Between them each row costs four numbers of every process, five
with label smoothing: they are gathered once and merged in rank order. Backward exchanges nothing.

Forward, the kernels give a slice's maximum m_r, log s_r and with smoothing S_r = sum_c w_c (-log p_c), as if
there were no other classes. With M = max_r m_r over all slices and d_r = log-sum of all minus that of r,
    log s = log sum_r exp(m_r - M + log s_r),   sum_c w_c (-log p_c) = sum_r (S_r + W_r d_r)
with W_r the sum of a slice's w_c.

Backward, the kernels get the statistics of all slices, a label smoothing of 1 and the gradient of lse:
    dx_c = grad_lse p_c + grad (W_r p_c - w_c) / C_r,
which is the gradient of every class but the target; that one replaces what they wrote for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import backends
from ..dtypes import acc_dtype, autocasts_to_float32
from ..kinds import MEAN, NONE
from ..reference import cross_entropy as reference
from .tools.autograd import apply, may_be_overwritten
from .tools.checks import (
    ArgumentError,
    DtypeError,
    check_device,
    check_floating,
    integer,
    number,
    reduction_code,
)
from .tools.classes import class_indices, class_weight, dense_rows, row_weights, without_class_dim
from .tools.processes import fingerprint, gathered, rank_in, refuse_differences

_NAME = "cross_entropy"
_IGNORED = -100  # what a slice's kernels ignore, whatever the caller's index is
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

#: What every process has to give alike, in the order in which they announce it.
_ALIKE = (
    *("the number of rows", "the dtype of input", "reduction", "ignore_index", "label_smoothing", "z_loss"),
    *("whether there is a weight", "target", "sample_weight"),
)


@dataclass(frozen=True)
class _Slice:
    """One process's checked arguments but the logits: of a row index, one element a row."""

    classes: int
    dtype: torch.dtype
    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None
    reduction: int
    ignore_index: int
    label_smoothing: float
    z_loss: float
    row_shape: torch.Size  # of the caller's input
    result_dtype: torch.dtype

    @property
    def acc(self) -> torch.dtype:
        return acc_dtype(self.dtype)

    def without_inputs(self) -> _Slice:
        """For backward, which keeps what it needs of them elsewhere."""
        empty = self.target.new_empty(0)
        return replace(self, target=empty, weight=None, sample_weight=None)


@dataclass(frozen=True)
class _Classes:
    """Where a slice lies among all classes: numbers, but tensors, so that no GPU has to be waited for."""

    begin: Tensor  # its first class
    total: Tensor  # how many there are in all slices
    weights: Tensor  # [processes]: sums of the class weights of each slice
    weight_elsewhere: Tensor  # and of all slices but this

    @classmethod
    def of(cls, peers: Tensor, rank: int) -> _Classes:
        counts, weights = peers[:, 1], peers[:, 2]
        others = weights.clone()
        others[rank] = 0.0
        return cls(counts[:rank].sum().long(), counts.sum().long(), weights, others.sum())


@dataclass(frozen=True)
class _Rows:
    """Which rows count, and what the slice's kernels take for their target."""

    index: Tensor  # class within the slice; 0 where the target is in another one, _IGNORED where ignored
    own: Tensor  # the target is in this slice
    ignored: Tensor
    bad: Tensor  # the target is in no slice

    @classmethod
    def of(cls, part: _Slice, classes: _Classes) -> _Rows:
        ignored = part.target == part.ignore_index
        bad = ((part.target < 0) | (part.target >= classes.total)) & ~ignored
        local = part.target - classes.begin
        own = (local >= 0) & (local < part.classes) & ~ignored & ~bad
        index = local.masked_fill(~own, 0).masked_fill(ignored, _IGNORED)
        return cls(index, own, ignored, bad)


def _checked(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: tuple[int, int, float, float],
) -> tuple[Tensor, _Slice]:
    """The logits as [N, C_r, *d], dense, and all else."""
    check_floating(_NAME, "input", input)
    if input.dtype not in _DTYPES:
        raise DtypeError(f"{_NAME}: input must be one of {', '.join(map(str, _DTYPES))}, got {input.dtype}")
    if input.dim() == 0:
        raise ArgumentError(f"{_NAME}: input must have at least one dimension, got a 0-d tensor")
    if not 0.0 <= options[2] <= 1.0:
        raise ArgumentError(f"{_NAME}: label_smoothing must be between 0.0 and 1.0, got {options[2]}")
    check_device(_NAME, "target", target, input)
    if target.is_floating_point():
        raise DtypeError(
            f"{_NAME}: target must hold class indices where process_group is given (there are no "
            f"probabilities of classes in several processes), got {target.dtype}"
        )
    row_shape = without_class_dim(input.shape)
    if input.dim() == 1:
        input, target = input[None], target.reshape(1) if target.numel() == 1 else target
    target = class_indices(_NAME, target, without_class_dim(input.shape))
    weight = class_weight(_NAME, weight, input.size(1), input)
    if sample_weight is not None:
        sample_weight = row_weights(_NAME, sample_weight, row_shape, input)
    for name, tensor in (("weight", weight), ("sample_weight", sample_weight)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(f"{_NAME}: there is no gradient of {name} where process_group is given")
    result_dtype = torch.float32 if autocasts_to_float32(input) else input.dtype
    if not input.is_contiguous():
        input, target, _ = dense_rows(input, target, None)
    flat = None if sample_weight is None else sample_weight.flatten()
    return input, _Slice(
        input.size(1), input.dtype, target.flatten(), weight, flat, *options, row_shape, result_dtype
    )


# --------------------------------------------------------------------------------- what processes agree on


def _announced(part: _Slice | None, group: Any, device: torch.device) -> Tensor:
    """What all processes say of their slices, [processes, facts] in float64: a refusal, the number of
    classes, the sum of their weights, and what they must give alike."""
    facts = torch.zeros(3 + len(_ALIKE), dtype=torch.float64)
    facts[0] = part is None
    if part is not None:
        alike = [
            *(part.target.numel(), _DTYPES.index(part.dtype), part.reduction, part.ignore_index),
            *(part.label_smoothing, part.z_loss, part.weight is not None),
        ]
        if device.type == "cpu":
            alike += [fingerprint(part.target), fingerprint(part.sample_weight)]
        facts[1] = part.classes
        facts[3 : 3 + len(alike)] = torch.tensor(alike, dtype=torch.float64)
    facts = facts.to(device)
    if part is not None:
        facts[2] = part.classes if part.weight is None else part.weight.sum(dtype=torch.float64)
    return gathered(facts, group)


def _refuse_what_differs(peers: Tensor) -> None:
    """The same error in every process, before any waits for another that has left.

    On the CPU only: a GPU would have to be waited for.
    """
    refused = [rank for rank, value in enumerate(peers[:, 0].tolist()) if value]
    if refused:
        raise ArgumentError(f"{_NAME}: arguments were refused in the processes of rank {refused}, see there")
    refuse_differences(_NAME, _ALIKE, peers[:, 3:])


def _refuse_bad_target(part: _Slice, classes: _Classes, bad: Tensor) -> None:
    if bool(bad.any()):
        raise IndexError(
            f"{_NAME}: target must be in [0, {int(classes.total)}) or equal ignore_index "
            f"({part.ignore_index}), got {int(part.target[bad][0])}"
        )


# -------------------------------------------------------------------------------------- forward and backward


def _statistics(
    logits: Tensor, part: _Slice, rows: _Rows, ops: SimpleNamespace | None
) -> tuple[Tensor, Tensor]:
    """The slice's maxima and logs of sums [2, N]; its sums of w_c (-log p_c) where labels are smoothed."""
    smooth = part.label_smoothing > 0
    if part.classes == 0:
        stats = torch.full((2, len(rows.index)), -math.inf, dtype=part.acc, device=logits.device)
        return stats, torch.zeros_like(stats[0])
    weight = part.weight if smooth else None
    if ops is None:
        return reference.row_statistics(logits, weight)
    index = rows.index.view(without_class_dim(logits.shape))
    options = (NONE, _IGNORED, float(smooth), 0.0)
    loss, stats, _ = ops.cross_entropy_forward(logits, index, weight, None, *options)
    return stats, loss.flatten() * part.classes


def _merged(everyone: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of [processes, 4 or 5, N]: statistics of all slices [2, N], the target's logit and weight, and the sum
    of w_c (-log p_c) over all classes."""
    maximum, log_sum, logit, target_weight, *class_sum = everyone.unbind(1)
    most = maximum.amax(0)
    nothing = maximum == -math.inf  # no class, or none that is possible
    log_all = (maximum - most + log_sum).masked_fill(nothing, -math.inf).logsumexp(0)
    spread = torch.zeros_like(most)
    if class_sum:
        further = (most - maximum) + (log_all - log_sum)
        per_slice = class_sum[0] + weights[:, None].to(further.dtype) * further
        impossible = torch.where(weights == 0, 0.0, math.inf).to(further.dtype)[:, None]
        spread = torch.where(nothing, impossible, per_slice).sum(0)
    return torch.stack([most, log_all]), logit.sum(0), target_weight.sum(0), spread


def _at_target(tensor: Tensor, rows: _Rows) -> tuple[Tensor, Tensor]:
    """The elements [N] of each row's class ``index`` of ``tensor`` [N, C, *d], and where they are."""
    where = rows.index.clamp(min=0).view(without_class_dim(tensor.shape)).unsqueeze(1)
    return tensor.gather(1, where).flatten(), where


def _forward(
    logits: Tensor, part: _Slice, classes: _Classes, rows: _Rows, group: Any, ops: SimpleNamespace | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss, and what backward needs: statistics [2, N], the target's logit, its weight, and the factor
    of the row's gradient."""
    stats, class_sum = _statistics(logits, part, rows, ops)
    logit, target_weight = torch.zeros_like(stats[0]), rows.own.to(part.acc)
    if part.classes > 0:
        logit = _at_target(logits, rows)[0].to(part.acc).masked_fill(~rows.own, 0.0)
        if part.weight is not None:
            target_weight = part.weight[rows.index.clamp(min=0)].masked_fill(~rows.own, 0.0)
    smooth = [class_sum] if part.label_smoothing > 0 else []
    mine = torch.stack([stats[0], stats[1], logit, target_weight, *smooth])
    everyone = gathered(mine, group) if mine.numel() else mine.expand(len(classes.weights), *mine.shape)
    stats, logit, target_weight, spread = _merged(everyone, classes.weights)

    loss = (1 - part.label_smoothing) * target_weight * ((stats[0] - logit) + stats[1])
    if smooth:
        loss = loss + part.label_smoothing / classes.total.double() * spread
    if part.z_loss != 0:
        loss = loss + part.z_loss * stats.sum(0).square()
    factor = torch.ones_like(loss) if part.sample_weight is None else part.sample_weight
    loss = (loss * factor).masked_fill(rows.bad, math.nan).masked_fill(rows.ignored, 0.0)
    if part.reduction != NONE:
        loss = loss.sum(dtype=torch.float64)
    if part.reduction == MEAN:
        divisor = target_weight.sum(dtype=torch.float64)
        loss, factor = loss / divisor, factor / divisor.to(part.acc)
    factor = factor.masked_fill(rows.bad, math.nan).masked_fill(rows.ignored, 0.0)
    return loss, (stats, logit, target_weight, factor)


@dataclass(frozen=True)
class _RowGradients:
    """dx_c = ``through_lse`` p_c + ``spread`` (W_r p_c - w_c) / C_r, at the target less ``on_target``."""

    through_lse: Tensor
    spread: Tensor
    on_target: Tensor

    @classmethod
    def of(
        cls,
        part: _Slice,
        classes: _Classes,
        rows: _Rows,
        saved: tuple[Tensor, ...],
        grad_loss: Tensor | None,
        grad_lse: Tensor | None,
    ) -> _RowGradients:
        stats, _, target_weight, factor = saved
        scale = torch.zeros_like(factor) if grad_loss is None else grad_loss.to(part.acc).flatten() * factor
        alone, uniform = 1 - part.label_smoothing, part.label_smoothing / classes.total.double()
        through_lse = scale * (alone * target_weight + uniform * classes.weight_elsewhere)
        if part.z_loss != 0:
            through_lse = through_lse + scale * (2 * part.z_loss) * stats.sum(0)
        through_lse = through_lse.masked_fill(rows.ignored, 0.0)
        if grad_lse is not None:
            through_lse = through_lse + grad_lse.to(part.acc).flatten()
        return cls(through_lse, scale * (uniform * part.classes), scale * target_weight * alone)


def _gradient(
    logits: Tensor,
    part: _Slice,
    rows: _Rows,
    saved: tuple[Tensor, ...],
    grads: _RowGradients,
    inplace: bool,
    ops: SimpleNamespace | None,
) -> Tensor:
    """Of the slice's logits: written over them, or anew."""
    if logits.numel() == 0:
        return logits.detach() if inplace else torch.empty_like(logits)
    stats, logit, *_ = saved
    shape, smooth = without_class_dim(logits.shape), part.label_smoothing > 0
    weight = part.weight if smooth else None
    if ops is None:
        out = reference.gradient_of_slice(
            logits, stats, grads.through_lse, grads.spread, weight, rows.ignored
        )
        out = logits.detach().copy_(out) if inplace else out
    else:
        arguments = (
            *(grads.spread.view(shape), grads.through_lse.view(shape), logits, rows.index.view(shape)),
            *(weight, None, stats, stats.new_ones(()), NONE, _IGNORED, 1.0, 0.0),
        )
        if inplace:
            ops.cross_entropy_backward_(*arguments)
        out = logits.detach() if inplace else ops.cross_entropy_backward(*arguments)
    written, where = _at_target(out, rows)
    of_class = rows.own.to(part.acc) if weight is None else weight[rows.index.clamp(min=0)]
    mean_weight = 1.0 if weight is None else weight.mean()
    on_probability = grads.through_lse + grads.spread * mean_weight
    probability = ((logit - stats[0]) - stats[1]).exp()
    value = on_probability * probability - (grads.on_target + grads.spread * of_class / part.classes)
    value = torch.where(rows.own, value.to(out.dtype), written)
    return out.scatter_(1, where, value.view(where.shape))


class _ShardedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        part: _Slice,
        classes: _Classes,
        rows: _Rows,
        group: Any,
        inplace: bool,
        ops: SimpleNamespace | None,
    ) -> tuple[Tensor, Tensor]:
        loss, saved = _forward(logits, part, classes, rows, group, ops)
        ctx.save_for_backward(logits, part.weight, *saved)
        ctx.call = part.without_inputs(), classes, rows, inplace, ops
        ctx.set_materialize_grads(False)
        return loss.to(part.result_dtype), saved[0].sum(0)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{_NAME}: there is no second derivative (create_graph=True) where process_group is given"
            )
        logits, weight, *saved = ctx.saved_tensors
        part, classes, rows, inplace, ops = ctx.call
        part = replace(part, weight=weight)
        grads = _RowGradients.of(part, classes, rows, tuple(saved), grad_loss, grad_lse)
        found = _gradient(logits, part, rows, tuple(saved), grads, inplace, ops)
        if inplace:
            increment_version(logits)  # whoever else saved these logits must not use them
        return (found, *(None,) * 6)


def sharded_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    size_average: bool | None,
    ignore_index: int,
    reduce: bool | None,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    sample_weight: Tensor | None,
    inplace_backward: bool,
    process_group: Any,
) -> tuple[Tensor, Tensor]:
    """:func:`pyops.functional.cross_entropy` with ``process_group``: the loss, and lse."""
    rank = rank_in(_NAME, process_group)
    if torch.compiler.is_compiling():
        raise RuntimeError(f"{_NAME}: with process_group it must be called outside of torch.compile")
    refusal: Exception | None = None
    part: _Slice | None = None
    try:
        inplace = inplace_backward and may_be_overwritten(_NAME, input)
        options = (
            reduction_code(_NAME, reduction, size_average, reduce),
            integer(_NAME, "ignore_index", ignore_index),
            number(_NAME, "label_smoothing", label_smoothing),
            number(_NAME, "z_loss", z_loss),
        )
        logits, part = _checked(input, target, weight, sample_weight, options)
    except Exception as error:  # the others are waiting
        refusal = error
    device = input.device if isinstance(input, Tensor) else torch.device("cpu")
    peers = _announced(part, process_group, device)
    if refusal is not None:
        raise refusal
    assert part is not None
    if device.type == "cpu":
        _refuse_what_differs(peers)
    classes = _Classes.of(peers, rank)
    rows = _Rows.of(part, classes)
    if device.type == "cpu":
        _refuse_bad_target(part, classes, rows.bad)
    ops = backends.resolve(logits)
    if torch.is_grad_enabled() and logits.requires_grad:
        loss, lse = apply(_ShardedCrossEntropy, logits, part, classes, rows, process_group, inplace, ops)
    else:
        loss, saved = _forward(logits, part, classes, rows, process_group, ops)
        loss, lse = loss.to(part.result_dtype), saved[0].sum(0)
    if part.reduction == NONE:
        loss = loss.view(part.row_shape)
    return loss, lse.view(part.row_shape)
