"""Correctness before speed: errors against float64, and the refusal to time a wrong result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Outputs = Sequence[torch.Tensor]

_CHUNK = 1 << 24
#: Elements, evenly spread, whose relative errors are compared.
_SAMPLED = 1 << 20

#: pyops may err twice as much as torch eager does at the same dtype, baselines (whose accuracy is
#: torch's business; only nonsense must be caught) much more, also beyond what is always allowed: torch's own
#: batch norm errs by 2e-5 on channels_last float32 where it errs by 4e-8 on contiguous input.
SUBJECT_FACTOR = 2.0
BASELINE_FACTOR = 64.0


#: Error that is allowed where one side may round to TF32 and the other does not: of small elements, mostly.
TF32_ERROR = 2.0**-8


class WrongResult(RuntimeError):
    """An implementation whose output or gradient is further from float64 than allowed."""


@dataclass(frozen=True)
class Errors:
    """Distance to the reference; all three are relative, so none can be hidden by small values.

    ``norm``: ||out - ref|| / ||ref||.  ``peak``: max |out - ref| / max |ref|.  ``median``: of the
    elements' |out - ref| / |ref|, of at most about a million elements; it catches small values that are wrong
    where large ones dominate the norm (the gradient of cross-entropy off the target class). A mean would be
    ruled by the few elements that cancelled to almost nothing.
    """

    norm: float
    peak: float
    median: float


def errors(output: torch.Tensor, reference: torch.Tensor) -> Errors:
    """Errors of ``output`` against float64 ``reference``, computed in chunks.

    NaN counts as right where the reference is NaN too, infinity where it is the same infinity;
    anywhere else a value that is not finite makes every error infinite.
    """
    if output.shape != reference.shape:
        raise WrongResult(f"shape {tuple(output.shape)}, expected {tuple(reference.shape)}")
    sums = torch.zeros(4, dtype=torch.float64, device=reference.device)
    flat, flat_reference = output.detach().reshape(-1), reference.detach().reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK].to(reference.device, torch.float64)
        _accumulate(sums, chunk, flat_reference[start : start + _CHUNK])
    square, reference_square, peak, reference_peak = sums.tolist()
    return Errors(
        norm=_ratio(math.sqrt(square), math.sqrt(reference_square)),
        peak=_ratio(peak, reference_peak),
        median=_median_relative(flat, flat_reference),
    )


def _difference(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    same = (output == reference) | (output.isnan() & reference.isnan())
    difference = torch.where(same, 0.0, (output - reference).abs())
    return torch.where(difference.isnan(), math.inf, difference)


def _median_relative(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Of the elements that are not zero in both."""
    step = output.numel() // _SAMPLED | 1  # odd: rows are of even length, and not only some columns count
    output, reference = output[::step].to(reference.device, torch.float64), reference[::step]
    counts = (output != 0) | (reference != 0)
    relative = (_difference(output, reference) / reference.abs())[counts]
    relative = torch.where(relative.isnan(), 0.0, relative)  # the same infinity, or NaN in both
    return relative.median().item() if relative.numel() else 0.0


def _accumulate(sums: torch.Tensor, chunk: torch.Tensor, reference: torch.Tensor) -> None:
    difference = _difference(chunk, reference)
    size = torch.where(reference.isfinite(), reference, 0.0).abs()
    sums[0] += difference.square().sum()
    sums[1] += size.square().sum()
    sums[2] = torch.maximum(sums[2], difference.max())
    sums[3] = torch.maximum(sums[3], size.max())


def _ratio(error: float, size: float) -> float:
    if error == 0.0:
        return 0.0
    return error / size if size > 0.0 else math.inf


def floor(dtype: torch.dtype) -> float:
    """Error that is always allowed: one rounding of a 16-bit result, eight of a longer one.

    torch can be right to the last bit by luck; twice that would be no allowance at all.
    """
    epsilon = torch.finfo(dtype).eps
    return epsilon / 2 if dtype.itemsize == 2 else 8 * epsilon


def require_close(
    name: str,
    outputs: Outputs,
    reference: Outputs,
    eager: Outputs,
    labels: Sequence[str],
    dtype: torch.dtype,
    factor: float = SUBJECT_FACTOR,
    least: float | None = None,
) -> dict[str, Errors]:
    """Errors of ``outputs`` by label, after checking each against ``factor`` times eager's own.

    ``least`` is always allowed, :func:`floor` of the dtype by default, as often as ``factor`` goes beyond
    :data:`SUBJECT_FACTOR`.

    Raises:
        WrongResult: too far away; the message names the output and the errors of both.
    """
    found = {}
    least = (floor(dtype) if least is None else least) * max(1.0, factor / SUBJECT_FACTOR)
    for label, output, exact, torch_output in zip(labels, outputs, reference, eager, strict=True):
        try:
            ours = errors(output, exact)
        except WrongResult as error:
            raise WrongResult(f"{name}: {label}: {error}") from None
        theirs = errors(torch_output, exact)
        for metric in ("norm", "peak", "median"):
            allowed = factor * getattr(theirs, metric) + least
            if not getattr(ours, metric) <= allowed:
                raise WrongResult(
                    f"{name}: {label}: {metric} error against float64 is "
                    f"{getattr(ours, metric):.3g}, allowed {allowed:.3g} "
                    f"({factor:g} x torch eager's {getattr(theirs, metric):.3g} + {least:.3g})"
                )
        found[label] = ours
    return found


def require_share(name: str, kept: torch.Tensor, expected: float) -> None:
    """Fail unless the share of True in ``kept`` is ``expected``, within five standard deviations.

    Raises:
        WrongResult: it is not.
    """
    count = max(1, kept.numel())
    share, deviation = kept.sum().item() / count, math.sqrt(expected * (1 - expected) / count)
    if abs(share - expected) > 5 * deviation:
        raise WrongResult(f"{name}: kept a share of {share:.5g}, expected {expected:.5g}")


def fingerprint(tensors: Outputs) -> list[float]:
    """Sums that change when a result does; compared before and after timing, cheap in memory."""
    values = []
    for tensor in tensors:
        tensor = tensor.detach()
        if not tensor.is_floating_point():
            values.append(float(tensor.sum()))
            continue
        values.append(float(tensor.sum(dtype=torch.float64)))
        values.append(float(torch.linalg.vector_norm(tensor, 1, dtype=torch.float64)))
    return values


def require_same(name: str, before: list[float], after: list[float], dtype: torch.dtype) -> None:
    """Fail when a result after timing is not the one that was checked before it.

    Raises:
        WrongResult: the implementation changed its inputs or keeps state between calls.
    """
    scale = max((abs(value) for value in before if math.isfinite(value)), default=0.0)
    for old, new in zip(before, after, strict=True):
        close = math.isclose(old, new, rel_tol=floor(dtype), abs_tol=floor(dtype) * scale)
        if not close and not (math.isnan(old) and math.isnan(new)):
            raise WrongResult(f"{name}: a checked sum was {old:.9g} before timing and is {new:.9g} after it")
