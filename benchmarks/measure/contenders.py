"""The implementations that compete in a case, as calls without arguments on shared inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from pyops import backends

from . import checks
from .case import FORWARD_BACKWARD, SEED, Case
from .contender import Contender, Inputs, nothing

#: Of the mean margin: about a hundred roundings in float32, or ten in TF32.
_LEAST_MARGIN, _LEAST_MARGIN_TF32 = 1e-5, 5e-3


def build(
    case: Case,
    mode: str,
    device: torch.device,
    *,
    compiled: bool,
    kernels: Sequence[str] | None = None,
    extra: Sequence[str] = (),
) -> list[Contender]:
    """All contenders of ``case`` on ``device``; the inputs are built once and shared.

    ``kernels`` are the backends of pyops that take part, all of the device by default; ``extra`` the
    baselines that are no torch, of cases that know them.
    """
    own = case.contenders(mode, device, compiled=compiled, extra=extra)
    if own is not None:
        return own
    inputs = case.build(device)
    needs_gradient = mode == FORWARD_BACKWARD
    eager = case.eager_call()
    grad_output = _grad_output(case, inputs) if needs_gradient else None
    before_call = None
    if needs_gradient:
        for name in case.differentiable:
            inputs[name].requires_grad_()
        if case.refill is not None:
            before_call = _refiller(inputs, case.refill)
            before_call()
    make = partial(
        _contender,
        inputs=inputs,
        case=case,
        grad_output=grad_output,
        needs_gradient=needs_gradient,
        before_call=before_call,
    )
    subjects: list[str | None] = [*(kernel_backends(device) if kernels is None else kernels)]
    if case.elements is not None:
        subjects = [None]
    elif case.overhead:
        subjects.insert(0, None)  # as users call it: tiny tensors may be left to torch
    contenders = [
        make(f"pyops {backend or 'default'}", case.pyops_call(), subject=True, backend=backend)
        for backend in subjects
    ]
    contenders.append(make("eager", eager))
    if compiled:
        contenders.append(make("compile", torch.compile(eager, dynamic=False)))
    contenders += [make(name, call) for name, call in case.baselines.items()]
    if case.channels_last:
        # The upstream gradient comes from a layer in the same format.
        upstream = grad_output
        if upstream is not None and upstream.dim() == 4:
            upstream = upstream.contiguous(memory_format=torch.channels_last)
        last = {"inputs": _channels_last(inputs, case), "grad_output": upstream}
        contenders.append(make("channels_last", eager, **last))
    return contenders


def kernel_backends(device: torch.device) -> list[str]:
    """The pyops backends that run compiled kernels on ``device`` (no interpreter, no plain torch).

    Raises:
        RuntimeError: there is none; the message says why.
    """
    own = ("cpp",) if device.type == "cpu" else ("cuda", "triton")
    names = [name for name in backends.available_backends(device) if name in own]
    if not names:
        reasons = "; ".join(f"{b}: {backends.missing_reason(b, device.type)}" for b in own)
        raise RuntimeError(f"bench: pyops has no kernels for {device.type!r} here ({reasons})")
    return names


def outputs_in_float64(case: Case, mode: str, contenders: list[Contender]) -> tuple[torch.Tensor, ...]:
    """The reference: torch eager on the same inputs in float64."""
    eager = next(c for c in contenders if c.name == "eager")
    if eager.checked is not None:
        return case.reference(mode, next(iter(eager.inputs.values())).device)
    if eager.before_call is not None:
        eager.before_call()
    inputs = {name: in_float64(value) for name, value in eager.inputs.items()}
    call = case.eager_call()
    grad_output = None
    if mode == FORWARD_BACKWARD:
        grad_output = in_float64(_grad_output(case, eager.inputs))
    return _contender("reference", call, inputs, case, grad_output, mode == FORWARD_BACKWARD, None).run()


def masked_outputs(
    case: Case,
    mode: str,
    contenders: list[Contender],
    outputs: tuple[torch.Tensor, ...],
    convert: Callable[[Any], Any],
) -> tuple[torch.Tensor, ...]:
    """torch eager's results on converted inputs, under the random mask that the first of ``outputs`` shows.

    In float64 (``in_float64``) they are the reference; in the case's dtype they say what error to expect.

    Raises:
        WrongResult: the number of zeros is not what the probability to drop lets expect.
    """
    assert case.mask is not None
    eager = next(c for c in contenders if c.name == "eager")
    inputs = {name: convert(value) for name, value in eager.inputs.items()}
    plain = case.mask.without(**inputs)
    visible = plain.detach() != 0
    kept = (outputs[0].detach() != 0) | ~visible
    checks.require_share(f"{case.name} {mode}", kept[visible], 1 - case.mask.p)
    factor = kept.to(plain.dtype) / (1 - case.mask.p)
    if mode != FORWARD_BACKWARD:
        return (plain * factor,)
    grad_output = convert(_grad_output(case, eager.inputs))
    wrt = [inputs[key] for key in case.differentiable]
    return (plain * factor, *torch.autograd.grad(plain, wrt, grad_output * factor))


def _contender(
    name: str,
    function: Callable[..., torch.Tensor],
    inputs: Inputs,
    case: Case,
    grad_output: torch.Tensor | None,
    needs_gradient: bool,
    before_call: Callable[[], None] | None,
    *,
    subject: bool = False,
    backend: str | None = None,
) -> Contender:
    differentiable = case.differentiable

    def forward() -> tuple[torch.Tensor, ...]:
        return (function(**inputs),)

    def forward_backward() -> tuple[torch.Tensor, ...]:
        output = function(**inputs)
        wrt = [inputs[key] for key in differentiable]
        return (output, *torch.autograd.grad(output, wrt, grad_output))

    return Contender(
        name,
        forward_backward if needs_gradient else forward,
        inputs,
        subject,
        before_block=partial(set_backend, backend) if subject else nothing,
        before_call=before_call,
    )


def set_backend(name: str | None) -> None:
    backends.set_backend(name)


def _grad_output(case: Case, inputs: Inputs) -> torch.Tensor | None:
    """One upstream gradient for all contenders, 0 where a rounding could send it elsewhere; None (ones) for a
    scalar output."""
    margin_of = case.margin_call()
    with torch.no_grad():
        output = case.eager_call()(**inputs)
        margin = margin_of(**inputs) if margin_of else None
    if output.dim() == 0:
        return None
    devices = [output.device] if output.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(SEED + 1)
        drawn = torch.randn_like(output)
    if margin is not None:
        least = _LEAST_MARGIN_TF32 if case.uses_tf32(output.device) else _LEAST_MARGIN
        drawn[margin < least * margin.mean()] = 0.0
    return drawn


def in_float64(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def _channels_last(inputs: Inputs, case: Case) -> Inputs:
    converted = dict(inputs)
    for name in case.differentiable:
        if inputs[name].dim() != 4:
            continue
        value = inputs[name].detach().to(memory_format=torch.channels_last)
        converted[name] = value.requires_grad_(inputs[name].requires_grad)
    return converted


class _Produced(torch.autograd.Function):
    """Stands for the layer whose output the op may overwrite: a non-leaf over an existing buffer."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, buffer: list[torch.Tensor]) -> torch.Tensor:
        return buffer[0].detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None]:
        return None, None


def _refiller(inputs: Inputs, name: str) -> Callable[[], None]:
    """Make ``inputs[name]`` a fresh non-leaf with the original values before every call.

    Every contender gets the same treatment, so the tail of the buffer is equally warm in the caches.
    """
    original = inputs[name].detach().clone()
    buffer = [inputs[name].detach()]
    anchor = torch.zeros((), device=original.device, requires_grad=True)

    def refill() -> None:
        buffer[0].copy_(original)
        inputs[name] = _Produced.apply(anchor, buffer)

    return refill
