"""Layers and fused steps in a row as one node of autograd.

A call of a Python ``autograd.Function`` costs some ten microseconds forward and as much backward, more while
the kernels before it have the caches: of a step of a small network a tenth. A chain runs the links' functions
(``links.py``), forward and backward, one after the other inside one such call. It computes what the links'
kernels compute, bit for bit. A first call with a shape goes from layer to layer, by the same kernels: a run
that is resumed begins with one. What is not the chain's to run, such as an evaluation, leaves small layers to
torch (:func:`pyops.backends.prefers_torch`), whose last bits may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from .. import backends
from ..ops.tools.autograd import differentiable_gradients
from .links import FlattenLink, Link, link_of
from .trace import hooks_of

#: A chain's inputs and outputs live until its backward begins; of larger ones memory is worth more than time.
_MOST_BYTES = 32 * 2**20
_MOST_SIGNATURES = 64
_PLAIN = (Tensor, Parameter)


#: A link, what its function kept, the arguments behind the parameters, and how many tensors it saved.
Ran = tuple[Link, "Kept", tuple[Any, ...], int]


class Kept:
    """What a link's function gets for autograd's context."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Tensor | None, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def maybe_clear_saved_tensors(self) -> None:
        """As autograd's contexts; the chain's own has them where the graph is kept."""
        self.saved_tensors = ()


class ChainFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, links: Sequence[Link], input: Tensor, *parameters: Any) -> Tensor:
        needs = ctx.needs_input_grad[1:]
        ran: list[Ran] = []
        saved: list[Tensor | None] = []
        first, needed, at = input, needs[0], 0
        for link in links:
            end = at + len(link.names)
            own = needs[1 + at : 1 + end]
            # No link takes another tensor behind its parameters that could need a gradient.
            kept = Kept((needed, *own, False, False))
            rest = link.fixed or link.rest(input)
            input = link.function.forward(kept, input, *parameters[at:end], *rest)
            ran.append((link, kept, rest, len(kept.saved_tensors)))
            saved += kept.saved_tensors
            kept.saved_tensors = ()
            needed, at = needed or any(own), end
        # What came in for the formulas of double backward.
        ctx.save_for_backward(first, *parameters, *saved)
        ctx.ran = ran
        return input

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        if torch.is_grad_enabled():
            needs = ctx.needs_input_grad[1:]
            return (None, *_differentiable(ctx.ran, tuple(saved[: len(needs)]), needs, grad))
        # Unless the graph is kept, a link's tensors die when it has run.
        ctx.maybe_clear_saved_tensors()
        found: list[Tensor | None] = []
        # Emptied by each call, so that a link can let go of the gradient before it asks for memory.
        wanted: list[Tensor | None] = [grad]
        del grad
        ran: list[Ran] = ctx.ran
        for link, kept, _, count in reversed(ran):
            own: Any = [None] * len(link.names)
            if wanted[0] is not None:  # else nothing here or before needs a gradient
                kept.saved_tensors = tuple(saved[len(saved) - count :])
                del saved[len(saved) - count :]
                first, *others = link.function.backward(kept, wanted.pop())
                wanted.append(first)
                own, kept.saved_tensors = others[: len(own)], ()
                del first
            found[:0] = own
        return None, wanted[0], *found


def _differentiable(
    ran: Sequence[Ran], given: tuple[Tensor | None, ...], needs: tuple[bool, ...], grad: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: those of the links' formulas."""
    with torch.enable_grad():
        # A layer that is used twice has its parameters twice: each use has a gradient of its own.
        used = [t.view_as(t) if n and t is not None else t for t, n in zip(given, needs, strict=True)]

    def formula(*_: Tensor) -> Any:
        x, rest = used[0], used[1:]
        for link, others in ((run[0], run[2]) for run in ran):
            own, rest = rest[: len(link.names)], rest[len(link.names) :]
            x = link.formula(x, *own, *others)
        return x

    wanted = tuple(t for t, n in zip(used, needs, strict=True) if n and t is not None)
    found = iter(differentiable_gradients(formula, wanted, (grad,)))
    return [next(found) if n and t is not None else None for t, n in zip(used, needs, strict=True)]


# Without torch.func's wrappers, which a chain leaves to its links (:func:`pyops.ops.tools.autograd.apply`).
_apply: Any = super(torch.autograd.Function, ChainFunction).apply


class Chain:
    """``links`` as a callable; inputs that it does not suit go from link to link."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = tuple(links)
        modules = dict.fromkeys(chain.from_iterable(link.modules for link in links))
        self._modules = [(m, type(m), m.__dict__.get("forward")) for m in modules]
        self._hooks = tuple(chain.from_iterable(map(hooks_of, modules)))
        self._owners = [(link.modules[0], name, name == "bias") for link in links for name in link.names]
        self._reads = [read for link in links for read in link.reads]
        #: The links' attributes that they were prepared for.
        self._states: list[Any] | None = None
        self._ops: SimpleNamespace | None = None
        #: By shape and dtype of the input: the shapes of the parameters, and whether the chain suits.
        self._learned: dict[tuple[Any, ...], tuple[list[Any], bool]] = {}

    def __call__(self, input: Tensor) -> Tensor:
        # In one function: behind a kernel that has taken the caches each call of another costs a microsecond.
        if torch.compiler.is_compiling() or not self._may_run(input):
            return self._one_by_one(input)
        dtype = input.dtype
        parameters: list[Any] = []
        shapes: list[Any] = []
        for module, name, optional in self._owners:
            parameter = module._parameters.get(name, False)  # False: pruned, or parametrized
            if parameter is None and optional:
                shapes.append(None)
            elif (
                type(parameter) is Parameter
                and parameter.dtype is dtype
                and parameter.is_cpu
                and parameter.is_contiguous()
            ):
                shapes.append(parameter.shape)
            else:
                return self._one_by_one(input)
            parameters.append(parameter)
        states = [read(module) for module, read in self._reads]
        if states != self._states:
            self._prepare(states)
        signature = (input.shape, dtype)
        learned = self._learned.get(signature)
        if learned is None or learned[0] != shapes:
            return self._learn(input, signature, shapes)
        if not learned[1] or backends.resolve(input) is not self._ops or self._ops is None:
            with backends.own_kernels():
                return self._one_by_one(input)
        output: Tensor = _apply(self._links, input, *parameters)
        return output

    def suits(self, input: Tensor) -> bool:
        """Whether it has run as one for an input of this shape."""
        learned = self._learned.get((input.shape, input.dtype))
        return learned is not None and learned[1]

    def _prepare(self, states: list[Any]) -> None:
        self._states, self._ops = states, backends.cpu_kernels()
        for link in self._links:
            link.prepare(self._ops)
        self._learned.clear()

    def __len__(self) -> int:
        return len(self._links)

    @property
    def calls(self) -> list[Any]:
        """The layers and steps in the row."""
        return [link.call for link in self._links]

    @property
    def layers(self) -> set[Module]:
        """The modules that these are or consist of."""
        return {module for module, _, _ in self._modules}

    def _one_by_one(self, input: Tensor) -> Tensor:
        for link in self._links:
            input = link.call(input)
        return input

    def _learn(self, input: Tensor, signature: tuple[Any, ...], shapes: list[Any]) -> Tensor:
        """The output from link to link, each of which checks what it is given."""
        suits, size = True, 0
        with backends.own_kernels():
            for link in self._links:
                suits = suits and link.suits(input)
                input = link.call(input)
                size += input.nbytes if isinstance(input, Tensor) else 0  # pooling may return a pair
        if len(self._learned) == _MOST_SIGNATURES:
            self._learned.clear()
        self._learned[signature] = (shapes, suits and size <= _MOST_BYTES)
        return input

    def _may_run(self, input: Tensor) -> bool:
        """Whether nothing is to be seen of each layer, and something of the backward."""
        if (
            type(input) not in _PLAIN
            or not torch.is_grad_enabled()
            or not input.is_cpu
            or not input.is_contiguous()
            or torch.is_autocast_enabled("cpu")
            or any(self._hooks)
            or torch._C._are_functorch_transforms_active()
            or torch._C._get_tracing_state() is not None
            or torch._C._len_torch_function_stack()
            or torch._C._len_torch_dispatch_stack()
            # Such as those of torch.utils.checkpoint, which counts what is saved.
            or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        ):
            return False
        for module, kind, forward in self._modules:
            if type(module) is not kind or module.__dict__.get("forward") is not forward:
                return False
        return True


def chains_in(row: Sequence[Any]) -> Iterator[tuple[int, Chain]]:
    """The chains of layers and steps that are called one after the other: where each begins, and it."""
    links: list[Link] = []
    for place, call in enumerate([*row, None]):
        link = link_of(call)
        if link is not None:
            links.append(link)
            continue
        if sum(not isinstance(link, FlattenLink) for link in links) > 1:
            yield place - len(links), Chain(links)
        links = []
