"""Paired, interleaved measurement of one case.

How a number comes about, in order:

1. Every contender (pyops on each backend; torch eager, channels_last, torch.compile, others the case
   names) gets the same input tensors and the same upstream gradient.
2. Outputs and gradients are compared with torch eager in float64. A wrong pyops result raises
   :class:`~pyops.benchmarks.measure.checks.WrongResult`: it is never timed. A wrong baseline is left out.
3. Peak memory of one call.
4. Warm-up of each contender by time, then rounds. In a round every contender runs one block of calls,
   long enough for the clock; the order rotates from round to round. Slow drifts of the machine hit all
   alike, and the ratio is taken *within* a round.
5. The rounds once more beside busy processes, where that is asked for.
6. Every contender's result is compared with the one checked in step 2.

Gradients: ``forward+backward`` calls ``torch.autograd.grad(output, inputs, grad_output)``, so every
call returns new gradient tensors, nothing is accumulated, no ``.grad`` is reset, and allocating and
freeing the gradients is inside the time of both sides, as in a training step with
``zero_grad(set_to_none=True)``. ``forward`` passes inputs that need no gradient.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pyops import backends

from . import checks, memory
from .case import Case, dtype_name
from .ceilings import Ceilings
from .clocks import Clock, device_clock
from .contender import Contender, nothing
from .contenders import build, in_float64, masked_outputs, outputs_in_float64
from .device import Call
from .neighbours import Neighbours

_FEWEST_ROUNDS = 3
_PATIENCE = 4  # budgets that the minimum of rounds may take


@dataclass(frozen=True)
class Settings:
    """How long to measure. ``budget_s`` bounds the rounds of one case within the two round limits.

    A case so slow that ``min_rounds`` take several budgets gets three rounds at least.
    """

    warmup_s: float = 0.3
    block_s: float = 0.02
    budget_s: float = 8.0
    min_rounds: int = 7
    max_rounds: int = 51
    compile: bool = True
    #: Busy processes beside a second set of rounds; 0: there is none.
    neighbours: int = 0
    #: Baselines that are not installed with torch: "jax".
    baselines: tuple[str, ...] = ()


QUICK = Settings(warmup_s=0.05, block_s=0.005, budget_s=1.5, min_rounds=5, max_rounds=15, compile=False)
FULL = Settings()


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, q1, q3)


@dataclass
class Beside:
    """Times and speedups as in :class:`Result`, while busy processes ran beside."""

    neighbours: int
    seconds: dict[str, Spread]
    samples: dict[str, list[float]]
    best_baseline: str
    speedup: dict[str, Spread]


@dataclass
class Result:
    """Everything measured for one case in one mode; ``asdict`` of it is what the JSON holds."""

    case: str
    op: str
    mode: str
    device: str
    dtype: str
    clock: str
    #: Seconds per call by contender, and the raw samples by round.
    seconds: dict[str, Spread] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    #: By pyops contender: the fastest baseline, and baseline / pyops per round (above 1: pyops wins).
    best_baseline: str = ""
    speedup: dict[str, Spread] = field(default_factory=dict)
    beside: Beside | None = None
    errors: dict[str, dict[str, checks.Errors]] = field(default_factory=dict)
    peak: dict[str, memory.Peak] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    #: By contender, what a reader must know of how it was timed.
    notes: dict[str, str] = field(default_factory=dict)
    #: By pyops contender, where the op chooses among several.
    algorithm: dict[str, str] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0
    floor_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_rounds(
    calls: Mapping[str, Call],
    clock: Clock,
    settings: Settings,
    *,
    before_block: Mapping[str, Call] | None = None,
    before_call: Mapping[str, Call | None] | None = None,
) -> dict[str, list[float]]:
    """Seconds per call of every contender, one sample per round; sample i of all belongs to round i."""
    before_block, before_call = before_block or {}, before_call or {}

    def block(name: str, count: int) -> float:
        before_block.get(name, nothing)()
        return clock.block(calls[name], count, before_call.get(name))

    names = list(calls)
    counts = {
        name: _warm_up(lambda count, name=name: block(name, count), settings, clock.max_calls)
        for name in names
    }
    samples: dict[str, list[float]] = {name: [] for name in names}
    spent, index = 0.0, 0
    while index < settings.max_rounds and (
        index < _FEWEST_ROUNDS
        or spent < settings.budget_s
        or (index < settings.min_rounds and spent < _PATIENCE * settings.budget_s)
    ):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.monotonic()
            samples[name].append(block(name, counts[name]))
            spent += max(samples[name][-1] * counts[name], time.monotonic() - start)
        index += 1
    return samples


def _warm_up(block: Callable[[int], float], settings: Settings, max_calls: int) -> int:
    """Run blocks for ``warmup_s``, at least one as long as ``block_s``; returns the calls in it."""
    start = time.monotonic()
    spent, count, longest = 0.0, 1, 0.0
    blocks = 0
    # Untimed work (a flushed cache, a rewritten input) counts as warming up, too.
    while max(spent, time.monotonic() - start) < settings.warmup_s or (
        longest < settings.block_s and blocks < 2
    ):
        estimate = max(block(count), 1e-9)
        longest = max(longest, estimate * count)
        spent += estimate * count
        blocks += 1
        count = max(1, min(max_calls, round(settings.block_s / estimate)))
    return count


def compare(
    samples: Mapping[str, Sequence[float]], subjects: Sequence[str], baselines: Sequence[str]
) -> tuple[str, dict[str, Spread]]:
    """The baseline with the lowest median, and the spread of baseline / subject over the rounds."""
    best = min(baselines, key=lambda name: statistics.median(samples[name]))
    return best, {
        name: Spread.of([b / s for b, s in zip(samples[best], samples[name], strict=True)])
        for name in subjects
    }


def measure(
    case: Case,
    mode: str,
    device: torch.device,
    settings: Settings = FULL,
    *,
    clock: Clock | None = None,
    ceilings: Ceilings | None = None,
    kernels: Sequence[str] | None = None,
) -> Result:
    """Check, then time one case, of pyops the backends ``kernels`` (all of the device by default).

    Raises:
        WrongResult: a pyops result is further from float64 than allowed, or changes while timing.
        RuntimeError: pyops has no kernels for ``device``.
    """
    clock = clock or device_clock(device)
    traffic = case.traffic(mode)
    result = Result(
        case=case.name,
        op=case.op,
        mode=mode,
        device=device.type,
        dtype=dtype_name(case.dtype),
        clock=type(clock).__name__,
        bytes_read=traffic.read,
        bytes_written=traffic.written,
        flops=traffic.flops,
        floor_seconds=ceilings.floor_seconds(traffic, case.dtype) if ceilings else None,
    )
    if settings.compile:
        torch._dynamo.reset()  # each case compiles afresh: no recompile limit, no leftovers
    # The contenders set their backends themselves; the caller's choice comes back at the end.
    with backends.use_backend(None), _device_context(device):
        contenders = build(
            case, mode, device, compiled=settings.compile, kernels=kernels, extra=settings.baselines
        )
        prints = check(case, mode, contenders, result)
        for contender in contenders:
            contender.before_block()
            result.peak[contender.name] = memory.peak(contender.call, device, contender.before_call)
            if contender.subject:
                result.algorithm[contender.name] = case.algorithm(contender.inputs)
        _time(contenders, clock, settings, result)
        if case.mask is None:
            for contender in contenders:
                after = checks.fingerprint(contender.run())
                checks.require_same(contender.name, prints[contender.name], after, case.dtype)
        else:  # no two results are the same, so they are checked as before
            check(case, mode, contenders, result)
    return result


def check(case: Case, mode: str, contenders: list[Contender], result: Result) -> dict[str, list[float]]:
    """Compare all contenders with float64; returns fingerprints of their outputs, by name.

    Fills ``result.errors``; drops baselines that fail; raises for a pyops result that is wrong.
    """
    names, least = case.labels(mode), case.least_error
    if case.tf32 and case.uses_tf32(next(iter(contenders[0].inputs.values())).device):
        least = checks.TF32_ERROR
    eager = next(c for c in contenders if c.name == "eager").run()
    reference = outputs_in_float64(case, mode, contenders) if case.mask is None else ()
    prints = {}
    for contender in list(contenders):
        factor = checks.SUBJECT_FACTOR if contender.subject else checks.BASELINE_FACTOR
        start = time.perf_counter()
        try:
            outputs = contender.run()
            if case.mask is not None:  # torch's own arithmetic under the same mask
                masked = (case, mode, contenders, tuple(outputs))
                reference = masked_outputs(*masked, in_float64)
                eager = masked_outputs(*masked, lambda value: value)
            result.errors[contender.name] = checks.require_close(
                f"{case.name} {mode}: {contender.name}",
                *(outputs, reference, eager, names, case.dtype, factor, least),
            )
        except Exception as error:
            if contender.subject or contender.name == "eager":
                raise
            # torch.compile without a compiler, a baseline this torch does not support, ...
            result.left_out[contender.name] = _one_line(error)
            contenders.remove(contender)
            continue
        if contender.name == "compile":
            result.compile_seconds[contender.name] = time.perf_counter() - start
        prints[contender.name] = checks.fingerprint(outputs)
    return prints


def _time(
    contenders: list[Contender],
    clock: Clock,
    settings: Settings,
    result: Result,
) -> None:
    subjects = [c.name for c in contenders if c.subject]
    baselines = [c.name for c in contenders if not c.subject]

    def rounds() -> dict[str, list[float]]:
        return run_rounds(
            {c.name: c.call for c in contenders},
            clock,
            settings,
            before_block={c.name: c.before_block for c in contenders},
            before_call={c.name: c.before_call for c in contenders},
        )

    result.samples = rounds()
    result.notes = {c.name: clock.notes[c.call] for c in contenders if c.call in clock.notes}
    result.seconds = {name: Spread.of(values) for name, values in result.samples.items()}
    result.best_baseline, result.speedup = compare(result.samples, subjects, baselines)
    if settings.neighbours:
        with Neighbours(settings.neighbours):
            samples = rounds()
        seconds = {name: Spread.of(values) for name, values in samples.items()}
        compared = compare(samples, subjects, baselines)
        result.beside = Beside(settings.neighbours, seconds, samples, *compared)


def _device_context(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:200]}"
