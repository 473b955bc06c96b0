"""Batch normalisation with the statistics of all processes of a group: autograd and the function behind
:class:`pyops.nn.SyncBatchNorm`.

The two reductions and the two passes that write are the kernels of :mod:`pyops.ops.batch_norm`. Between them
the processes exchange 2 C + 1 numbers forward and 2 C backward, in float64, and merge them in rank order.
Processes may have batches of different sizes, or none.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..kinds import parse
from ..layouts import dense_in_order, in_order, inverse, out_of_order
from ..reference import batch_norm as reference
from .batch_norm import Options
from .tools.autograd import apply
from .tools.batch_norm import (
    check_residual,
    check_vectors,
    memory_order,
)
from .tools.checks import check_floating
from .tools.processes import gathered


def _global_statistics(local: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [2, C] over all processes and the number of values per channel, []."""
    counted = torch.cat([local.flatten(), local.new_full((1,), float(count))])
    everyone = gathered(counted, group)
    counts, moments = everyone[:, -1:], everyone[:, :-1].unflatten(1, (2, -1))
    total = counts.sum().clamp(min=1)
    mean = (counts * moments[:, 0]).sum(0) / total
    apart = (moments[:, 0] - mean).square()
    return torch.stack([mean, (moments[:, 1] + counts * apart).sum(0) / total]), total


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        options: Options,
        order: list[int] | None,
        group: Any,
        ops: SimpleNamespace,
    ) -> tuple[Tensor, Tensor, Tensor]:
        laid_out = (in_order(input, order), weight, bias, in_order(residual, order))
        count = input.numel() // input.shape[1]
        local = ops.batch_norm_statistics(laid_out[0], options.dim)
        statistics, total = _global_statistics(local, count, group)
        masked = options.needs_mask(residual)
        output, mean, rstd, mask = ops.batch_norm_forward(*laid_out, None, None, statistics, *options, masked)
        residual = options.kept_residual(residual)
        ctx.save_for_backward(input, weight, bias, residual, mask if masked else None, mean, rstd, total)
        ctx.options, ctx.order, ctx.group, ctx.ops = options, order, group, ops
        ctx.mark_non_differentiable(statistics, total)
        return out_of_order(output, order), statistics, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("SyncBatchNorm: there is no second derivative (create_graph=True)")
        input, weight, bias, residual, *rest, total = ctx.saved_tensors
        options, order, needs = ctx.options, ctx.order, ctx.needs_input_grad[:4]
        saved = [in_order(input, order), weight, bias, in_order(residual, order), *rest]
        grad = in_order(grad, order).contiguous()
        sums = means = None
        if any(needs[:3]):
            sums = ctx.ops.batch_norm_backward_sums(grad, *saved, options.dim, *options.activation)
        if needs[0]:
            assert sums is not None
            means = gathered(sums, ctx.group).sum(0) / total
        dx, _weight, _bias, dresidual = ctx.ops.batch_norm_backward(
            *(grad, *saved, means, options.dim, True, *options.activation, needs[0], False, needs[3])
        )
        back = None if order is None else inverse(order)
        found = [in_order(dx, back) if needs[0] else None, None, None, None]
        if needs[3]:
            found[3] = in_order(dresidual, back)
        if sums is not None:
            # Of this process alone: DistributedDataParallel averages the gradients of all parameters.
            like = next((t for t in saved[1:3] if t is not None), saved[6])
            if needs[1]:
                found[1] = (sums[1] * saved[6]).to(like.dtype)
            if needs[2]:
                found[2] = sums[0].to(like.dtype)
        return (*found, None, None, None, None)


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    group: Any,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """:func:`pyops.functional.batch_norm` in training, over the batches of all processes of ``group``.

    Gradients of the parameters are those of this process's batch.

    Raises:
        TypeError, ValueError: an argument of wrong type, shape or value.
        RuntimeError: tensors on different devices; a backend without kernels; a second derivative.
    """
    name = "SyncBatchNorm"
    function = parse(name, activation)
    check_floating(name, "input", input)
    check_vectors(name, input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if residual is not None:
        check_residual(name, residual, input)
    ops = backends.resolve(input, "batch_norm_statistics")
    if ops is None:
        raise RuntimeError(
            f"{name}: there are no kernels for {input.device} in use that could share statistics"
        )
    options = Options(1, True, 0.0, float(eps), *function)
    order = memory_order(input)
    if order is not None:
        options = options._replace(dim=order.index(1))
    vectors = [None if v is None else v.contiguous() for v in (weight, bias)]
    tensors = (dense_in_order(input, order), *vectors, dense_in_order(residual, order))
    output, statistics, total = apply(_SyncBatchNorm, *tensors, options, order, group, ops)
    reference.update_running(running_mean, running_var, statistics[0], statistics[1], total, momentum)
    return output
