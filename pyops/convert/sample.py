"""A model run on example inputs, so that nothing of it remains: for time and shapes (``measure.py``)."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only


class Sample:
    """A step of ``model`` on ``example_inputs``: a training step without the optimizer, or an evaluation.

    Which of the two is the model's mode; without anything to train, or while gradients are off, training mode
    runs forward only.

    Raises:
        ValueError: a layer of ``model`` is lazy, and would be initialised by a run.
    """

    def __init__(self, model: Module, example_inputs: Any) -> None:
        if any(map(is_lazy, chain(model.parameters(), model.buffers()))):
            raise ValueError(
                "convert: example_inputs would initialise the lazy layers of model: call model once first"
            )
        self.model = model
        self._args, self._kwargs = _arguments(example_inputs)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.gradient = model.training and torch.is_grad_enabled() and bool(trained)
        given = tensors_in((self._args, self._kwargs))
        self._wanted = [*trained, *(t for t in given if t.requires_grad)]
        self._gpus = sorted({t.device.index for t in chain(given, model.parameters()) if t.is_cuda})

    def step(self) -> float:
        """Run it; the seconds it took."""
        begin = self.now()
        with torch.set_grad_enabled(self.gradient):
            result = self.model(*self._args, **self._kwargs)
        if self.gradient:
            differentiate(result, self._wanted)
        return self.now() - begin

    def now(self) -> float:
        """Seconds, once everything that was started has ended."""
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
        return time.perf_counter()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Context in which runs change copies of buffers, and after which random numbers go on as before."""
        buffers = [
            (m, name, b) for m in self.model.modules() for name, b in m._buffers.items() if b is not None
        ]
        copies: dict[int, Tensor] = {}
        before = random.getstate()
        numpy = sys.modules.get("numpy")
        state = None if numpy is None else numpy.random.get_state()
        try:
            with torch.random.fork_rng(self._gpus):
                for module, name, buffer in buffers:
                    copies.setdefault(id(buffer), buffer.detach().clone())
                    module._buffers[name] = copies[id(buffer)]
                yield
        finally:
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            random.setstate(before)
            if numpy is not None:
                numpy.random.set_state(state)


def differentiate(result: Any, wanted: Sequence[Tensor]) -> None:
    """Compute gradients of all of ``result``, and leave them in no tensor."""
    outputs = [t for t in tensors_in(result) if t.requires_grad]
    if outputs and wanted:
        torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a structure of tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (tuple, list)):
        inner = value
    elif is_dataclass(value):
        inner = (getattr(value, field.name) for field in fields(value))
    return list(chain.from_iterable(map(tensors_in, inner)))


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments and those by name: of a tuple or list, of a mapping, or of one input.

    Tensors are copies, because a forward may change its input in place.
    """
    example_inputs = tree_map_only(Tensor, _copy, example_inputs)
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
