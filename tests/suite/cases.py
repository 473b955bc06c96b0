"""Cases: the inputs and options that an op is tried with, and how they are combined."""

from __future__ import annotations

import dataclasses
import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from .backends import BACKENDS, Backend
from .layouts import LAYOUTS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "mean", "sum")  # of the losses


@dataclass(frozen=True)
class Op:
    """A public function, torch's counterpart with the same arguments, and the formula of both."""

    pyops: Callable[..., Any]
    torch: Callable[..., Any]
    formula: Callable[..., Any]
    differentiable: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One set of arguments: ``make`` draws the tensors in float64, ``options`` are the other arguments."""

    id: str
    op: str
    make: Callable[[torch.Generator], dict[str, Tensor]] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    quick: bool = True

    def __str__(self) -> str:
        return self.id

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensor arguments, the floating ones rounded to ``dtype``; the same on every call."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))
        drawn = self.make(generator)
        return {k: t.to(dtype) if t.is_floating_point() else t for k, t in drawn.items()}

    def in_layout(self, layout: str) -> Case:
        """The same with all tensors in another of the ``LAYOUTS``."""

        def make(generator: torch.Generator) -> dict[str, Tensor]:
            return {k: LAYOUTS[layout](t) for k, t in self.make(generator).items()}

        return dataclasses.replace(self, id=f"{self.id}_{layout}", make=make)


def combinations(backends: Iterable[Backend], cases: Iterable[Case], *axes: Iterable[Any]) -> Iterator[tuple]:
    """Each of ``backends`` with each of ``cases``, and so on; slow backends get the quick cases only.

    Thinned backends get one combination of the other axes with each case, in turn.
    """
    cases, settings = list(cases), list(itertools.product(*axes))
    for backend in backends:
        wanted = [case for case in cases if backend.thorough or case.quick]
        for i, case in enumerate(wanted):
            # Each turn begins one further, since the options of cases alternate, too.
            one = (i + i // len(settings)) % len(settings)
            for setting in [settings[one]] if backend.thinned else settings:
                yield backend, case, *setting


def sweep(
    cases: Iterable[Case],
    dtypes: Iterable[torch.dtype] = DTYPES,
    backends: Iterable[Backend] = tuple(BACKENDS),
) -> pytest.MarkDecorator:
    """Parametrise (backend, case, dtype) over all combinations."""
    found = [
        pytest.param(*values, id="-".join(str(v).removeprefix("torch.") for v in values))
        for values in combinations(backends, cases, dtypes)
    ]
    return pytest.mark.parametrize(("backend", "case", "dtype"), found, indirect=["backend"])


def pairwise(seed: int = 0, **axes: Iterable[Any]) -> list[dict[str, Any]]:
    """A small set of combinations in which each pair of values of any two axes occurs."""
    names, values = list(axes), [list(v) for v in axes.values()]
    rng = random.Random(seed)
    axis_pairs = list(itertools.combinations(range(len(names)), 2))
    missing = {
        (a, b, i, j) for a, b in axis_pairs for i in range(len(values[a])) for j in range(len(values[b]))
    }
    chosen = []
    while missing:
        a, b, i, j = min(missing)
        candidates = []
        for _ in range(30):
            candidate = [rng.randrange(len(v)) for v in values]
            candidate[a], candidate[b] = i, j
            covered = {(p, q, candidate[p], candidate[q]) for p, q in axis_pairs} & missing
            candidates.append((len(covered), candidate, covered))
        _, best, covered = max(candidates, key=lambda c: c[0])
        missing -= covered
        chosen.append({n: v[k] for n, v, k in zip(names, values, best, strict=True)})
    return chosen


def product(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


# --------------------------------------------------------------------------------------- drawing tensors


def normal(generator: torch.Generator, shape: tuple[int, ...], scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale


def uniform(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0.1, 1.5)."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 1.4 + 0.1


def name_of(settings: dict[str, Any]) -> str:
    """Readable id of a combination of options; what is off is left out."""
    parts = []
    for name, value in settings.items():
        if value is True:
            parts.append(name)
        elif isinstance(value, tuple):
            parts.append("x".join(map(str, value)))
        elif isinstance(value, str):
            parts.append(value)
        elif value not in (None, False, 0.0) or (value == 0 and name == "ignored"):
            parts.append(f"{name}={value}")
    return "_".join(parts)
