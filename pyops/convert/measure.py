"""What of a converted model is faster as it was, on this machine: measured, and left so.

Every part (``parts.py``) runs on the inputs that it gets in a step of the model, in the ways that it can, in
turns. Then the whole model does, as converted, as chosen part by part, and as it was written: the fastest
stays. So the model is not slower than it was, as far as a measurement tells.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .chain import Chain
from .costs import flops_and_bytes
from .forwards import Method, detach
from .parts import Part, Way, members_of, note, recording, ways_of
from .sample import Sample, differentiate
from .swap import Conversion, Cost, conversion_of, is_converted, record, unswap

#: Shorter calls are repeated for this time.
_LEAST_SECONDS = 3e-4
_MOST_ROUNDS, _LEAST_ROUNDS = 9, 3
#: What another way has to save of a part's time, or another arrangement of the model's, to be chosen.
_WORTH, _WORTH_OF_MODEL = 0.03, 0.01
#: A chain that takes longer is looked at link by link: its calls are no longer what counts.
_SHORT_CHAIN = 3e-3
#: How much of the time is for the whole model.
_FOR_MODEL = 0.4


def choose(model: Module, example_inputs: Any, seconds: float, fuse: Callable[[], None]) -> None:
    """Leave of the converted ``model`` what is faster as it was; ``fuse`` makes its plans anew.

    It takes about ``seconds``, at most; four steps of the model in each arrangement if these take longer.

    Raises:
        ValueError: see :class:`Sample`.
    """
    sample = Sample(model, example_inputs)
    with sample.untouched():
        begin = sample.now()
        sample.step()
        with recording(model) as found:
            sample.step()
        parts = [part for recorded in found.values() for part in _split(recorded, sample)]
        timings = _time_parts(parts, sample, begin + seconds * (1 - _FOR_MODEL))
        _set_costs(model, timings, lambda timing: 0)
        arrangements = [_Arrangement(model)]
        kept = [timing for timing in timings if timing.best]
        if kept:
            for timing in kept:
                timing.keep()
            fuse()
            _set_costs(model, timings, lambda timing: timing.best)
            arrangements.append(_Arrangement(model))
        _set_costs(model, timings, lambda timing: -1)
        arrangements.append(_Arrangement(model, as_written=True))
        runs = [arrangement.runner(sample) for arrangement in arrangements]
        taken = seconds_of(runs, begin + seconds - sample.now())
        best = _fastest(taken, _WORTH_OF_MODEL)
        arrangements[best].apply()
        if best == len(arrangements) - 1:
            ours, theirs = median(min(taken[:-1], key=median)), median(taken[-1])
            arrangements[0].keep_all(f"the whole model takes {milliseconds(ours, theirs)}")


def seconds_of(runs: Sequence[Callable[[], float]], limit: float) -> list[list[float]]:
    """Seconds that each of ``runs`` returns, in turns, for about ``limit`` seconds in all."""
    end = time.perf_counter() + limit
    first = [run() for run in runs]
    repeats = max(1, int(_LEAST_SECONDS / max(min(first), 1e-9)))
    taken: list[list[float]] = [[] for _ in runs]
    for done in range(_MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        for run, times in zip(runs, taken, strict=True):
            times.append(sum(run() for _ in range(repeats)) / repeats)
    return taken


def _fastest(taken: Sequence[Sequence[float]], worth: float) -> int:
    """Which run is the fastest; the first, unless another saves ``worth`` of its time."""
    ratios = [median(a / b for a, b in zip(times, taken[0], strict=True)) for times in taken]
    best = min(range(len(ratios)), key=ratios.__getitem__)
    return best if ratios[best] < 1 - worth else 0


def milliseconds(ours: float, theirs: float) -> str:
    return f"{1e3 * ours:.3g} against {1e3 * theirs:.3g} ms"


@dataclass
class _Timing:
    """The median seconds of a part's ways, the last of which is as it was written, and the one to choose."""

    part: Part
    ways: Sequence[Way]
    seconds: list[float]
    best: int
    #: Of one call.
    flops: int
    bytes: int

    def keep(self) -> None:
        """Let the members of all calls that the chosen way keeps be torch's."""
        text = milliseconds(self.seconds[0], self.seconds[self.best])
        for call in self.part.calls:
            members = members_of(call)
            for place in self.ways[self.best].kept:
                module: Any = members[place].module
                unswap(module)
                record(module).kept = text


def _time_parts(parts: Sequence[Part], sample: Sample, end: float) -> list[_Timing]:
    """The timings of the parts; of those for which time was left."""
    timings = []
    with _with_a_bar(parts) as bar:
        for done, part in enumerate(bar):
            left = end - sample.now()
            if left <= 0:
                break
            timings.append(_time_part(part, sample, left / (len(parts) - done)))
    return timings


def _with_a_bar(parts: Sequence[Part]) -> contextlib.AbstractContextManager[Iterable[Part]]:
    """The parts, with a bar of progress where tqdm is installed, which pyops does not need."""
    try:
        from tqdm import tqdm
    except ImportError:
        return contextlib.nullcontext(parts)
    return tqdm(parts, "pyops.convert: measuring", delay=2, leave=False, disable=None)


def _time_part(part: Part, sample: Sample, limit: float) -> _Timing:
    pairs = [(way, _timed(way.run, part, sample)) for way in ways_of(part.call)]
    # What torch cannot do, such as a dtype, is no way.
    pairs = [(way, run) for i, (way, run) in enumerate(pairs) if i == 0 or _works(run)]
    ways, runs = [way for way, _ in pairs], [run for _, run in pairs]
    taken = seconds_of(runs, limit)
    sizes = flops_and_bytes(members_of(part.call), part.inputs, sample.gradient)
    return _Timing(part, ways, [median(times) for times in taken], _fastest(taken, _WORTH), *sizes)


def _works(run: Callable[[], float]) -> bool:
    try:
        run()
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return True


def _timed(run: Callable[..., Any], part: Part, sample: Sample) -> Callable[[], float]:
    """A run of a part, forward and in training backward, that returns its seconds."""
    modules = [member.module for member in members_of(part.call) if member.module is not None]
    wanted: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
    wanted += [t for t in part.inputs if t.requires_grad]
    in_place = bool(modules) and getattr(modules[0], "inplace", False)

    def timed() -> float:
        with torch.set_grad_enabled(sample.gradient):
            inputs = [t.clone() for t in part.inputs] if in_place else part.inputs
            begin = sample.now()
            result = run(*inputs)
            if sample.gradient:
                differentiate(result, wanted)
            return sample.now() - begin

    return timed


def _split(part: Part, sample: Sample) -> Iterable[Part]:
    """The part; of a chain that is long, or runs link by link anyway, its links."""
    if not isinstance(part.call, Chain):
        return [part]
    run = _timed(part.call, part, sample)
    if sample.gradient and part.call.suits(*part.inputs) and min(run(), run()) < _SHORT_CHAIN:
        return [part]
    parts: dict[Any, Part] = {}
    for chain, count in part.calls.items():
        input: Tensor = part.inputs[0]
        with torch.set_grad_enabled(sample.gradient):
            for call in chain.calls:
                for _ in range(count):
                    note(parts, call, (input,))
                input = call(input).detach().requires_grad_(sample.gradient)
    return parts.values()


def _set_costs(model: Module, timings: Iterable[_Timing], way: Callable[[_Timing], int]) -> None:
    """Record what each first module of a part takes in a step of the model, the parts in these ways."""
    for module in model.modules():
        conversion = conversion_of(module)
        if conversion is not None:
            conversion.cost = None
    for timing in timings:
        for call, count in timing.part.calls.items():
            conversion = record(members_of(call)[0].module)  # type: ignore[arg-type]
            now, before = timing.seconds[way(timing)], timing.seconds[-1]
            cost = Cost(count * timing.flops, count * timing.bytes, count * now, count * before)
            conversion.cost = cost if conversion.cost is None else conversion.cost + cost


class _Arrangement:
    """What of a model computes how: as it is now, or ``as_written``."""

    def __init__(self, model: Module, as_written: bool = False) -> None:
        self._modules: list[tuple[Module, dict[str, Method], Conversion | None]] = []
        for module in model.modules():
            conversion = conversion_of(module)
            methods = {name: m for name, m in vars(module).items() if isinstance(m, Method)}
            if as_written and conversion is not None:
                swapped = conversion.swapped and not is_converted(module)
                conversion = replace(conversion, swapped=swapped, plans=(), not_fused=[], not_traced=None)
            copied = None if conversion is None else replace(conversion)
            self._modules.append((module, {} if as_written else methods, copied))

    def runner(self, sample: Sample) -> Callable[[], float]:
        def run() -> float:
            self.apply()
            return sample.step()

        return run

    def apply(self) -> None:
        for module, methods, conversion in self._modules:
            detach(module)
            vars(module).update(methods)
            if conversion is not None:
                vars(module)["_pyops_conversion"] = conversion

    def keep_all(self, why: str) -> None:
        """Note of what was converted here that it stays torch's."""
        for module, methods, _ in self._modules:
            if isinstance(methods.get("forward"), Method):
                record(module).kept = why
