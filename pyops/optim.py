"""Drop-ins for :mod:`torch.optim`'s SGD, Adam and AdamW: torch's fused kernels, called without detours.

A step of torch's classes spends some 20 microseconds in Python, and several times as much where the kernels
before it have taken the caches: with a small network as long as the update itself. Here the usual case
collects the tensors and calls the kernel. What is not usual goes the way of torch's class: a closure, hooks,
a gradient scaler, a profiler, the first step, a learning rate that is a tensor, other devices than the CPU.

Numbers, options and ``state_dict`` are those of torch's fused form, which is the default here where torch has
one for the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as _torchs

from .layouts import laid_out_as

__all__ = ["SGD", "Adam", "AdamW"]

_FUSED_DEVICES = ("cpu", "cuda")
#: Parameters and gradients of a group, and the tensors of their state by name.
_Gathered = tuple[list[Tensor], list[Tensor], list[list[Tensor]]]


class _Lean(torch.optim.Optimizer):
    """Comes before a class of torch in the bases; ``_full_step`` is that class's own step."""

    _full_step: Callable[..., Any]

    def __init__(self, params: Iterable[Any], *args: Any, fused: bool | None = None, **options: Any) -> None:
        if isinstance(params, Tensor) or not isinstance(params, Iterable):
            kind = type(params).__name__
            raise TypeError(f"{type(self).__name__}: params must be tensors or groups of them, got {kind}")
        params = list(params)
        self._chooses = fused is None and not options.get("foreach") and not options.get("differentiable")
        if self._chooses:
            fused = _has_fused(params)
        options["fused"] = fused
        super().__init__(params, *args, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As :meth:`torch.optim.Optimizer.add_param_group`."""
        if self._chooses and isinstance(param_group, dict) and not _has_fused([param_group]):
            param_group.setdefault("fused", None)
        add: Any = torch.optim.Optimizer.add_param_group
        # What torch wraps it in keeps torch.compile out, and to do so imports the compiler: a second, at the
        # first optimizer of a process.
        if not torch.compiler.is_compiling():
            add = getattr(add, "__wrapped__", add)
        add(self, param_group)

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *rest: Any
    ) -> Any:
        """As torch's, whose steps all collect their tensors here.

        The fused kernels go through memory: where a gradient or what is kept for a parameter lies in another
        order than it, as after ``to(memory_format=...)``, its elements would meet those of other places.
        """
        if group["fused"]:
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = laid_out_as(value, parameter)
        result = super()._init_group(group, params, grads, *rest)  # type: ignore[misc]
        if group["fused"]:
            grads[:] = [g if g.is_sparse else laid_out_as(g, p) for g, p in zip(grads, params, strict=True)]
        return result

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, as :meth:`torch.optim.Optimizer.step`."""
        if closure is not None or not self._is_usual():
            return self._full_step(closure)
        # All before the first update: a group that is not usual leaves all of them to torch.
        gathered = [self._gather(group) for group in self.param_groups]
        if any(found is None for found in gathered):
            return self._full_step()
        with torch.no_grad():
            for group, found in zip(self.param_groups, gathered, strict=True):
                if found is not None and found[0]:
                    self._update(group, *found)
        return None

    step.hooked = True  # type: ignore[attr-defined]  # torch wraps it otherwise, for hooks and profilers

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As :meth:`torch.optim.Optimizer.zero_grad`."""
        if not set_to_none or _is_profiling():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _is_usual(self) -> bool:
        return not (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _torchs._global_optimizer_pre_hooks
            or _torchs._global_optimizer_post_hooks
            or "grad_scale" in self.__dict__
            or torch.compiler.is_compiling()
            or _is_profiling()
        )

    def _gather(self, group: dict[str, Any]) -> _Gathered | None:
        """The tensors of the group's update; None where it is not the usual one."""
        if not group["fused"] or isinstance(group["lr"], Tensor) or group["differentiable"]:
            return None
        names = self._state_names(group)
        params: list[Tensor] = []
        grads: list[Tensor] = []
        states: list[list[Tensor]] = [[] for _ in names]
        dtype = None
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None:
                continue
            dtype = dtype or parameter.dtype
            # One call of the kernel takes tensors of one dtype and device.
            if parameter.dtype is not dtype or grad.dtype is not dtype or not grad.is_cpu or grad.is_sparse:
                return None
            if not _lie_alike(parameter, grad):
                return None
            if names:
                state = self.state.get(parameter)
                if not state or any(state.get(name) is None for name in names):
                    return None  # torch makes the state
                for name, tensors in zip(names, states, strict=True):
                    if state[name].dim() and not _lie_alike(parameter, state[name]):
                        return None
                    tensors.append(state[name])
            params.append(parameter)
            grads.append(grad)
        return params, grads, states

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        raise NotImplementedError

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[list[Tensor]]
    ) -> None:
        raise NotImplementedError


def _lie_alike(parameter: Tensor, other: Tensor) -> bool:
    """Whether elements at the same place in memory belong together."""
    return (parameter.is_contiguous() and other.is_contiguous()) or parameter.stride() == other.stride()


def _is_profiling() -> bool:
    return bool(torch.autograd.profiler._is_profiler_enabled)


def _has_fused(params: list[Any]) -> bool | None:
    """True where torch's fused kernels take all of ``params``; None, torch's own default, where not."""
    groups = [entry.get("params") if isinstance(entry, dict) else entry for entry in params]
    tensors: list[Any] = []
    for entry in groups:
        if isinstance(entry, (list, tuple)):
            tensors += [item[1] if isinstance(item, tuple) else item for item in entry]
        else:
            tensors.append(entry)
    # A generator in a group can be read once, by torch.
    takes = all(
        isinstance(t, Tensor)
        and t.is_floating_point()
        and t.device.type in _FUSED_DEVICES
        # They write as many elements as a tensor has, one behind the other, also where memory has fewer.
        and (t.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(t))
        for t in tensors
    )
    return True if takes and tensors else None


def _full_step(kind: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """The step of torch's class with its hooks."""
    step: Any = kind.step
    return step if getattr(step, "hooked", False) else torch.optim.Optimizer.profile_hook_step(step)


class SGD(_Lean, torch.optim.SGD):
    """:class:`torch.optim.SGD`."""

    _full_step = _full_step(torch.optim.SGD)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[list[Tensor]]
    ) -> None:
        torch._fused_sgd_(
            params,
            grads,
            states[0] if states else [],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
        )


class Adam(_Lean, torch.optim.Adam):
    """:class:`torch.optim.Adam`."""

    _full_step = _full_step(torch.optim.Adam)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "step", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    def _gather(self, group: dict[str, Any]) -> _Gathered | None:
        if group["capturable"] or any(isinstance(beta, Tensor) for beta in group["betas"]):
            return None
        return super()._gather(group)

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[list[Tensor]]
    ) -> None:
        averages, squares, steps, *most = states
        torch._foreach_add_(steps, 1)
        update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        update(
            params,
            grads,
            averages,
            squares,
            most[0] if most else [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
        )


class AdamW(Adam, torch.optim.AdamW):
    """:class:`torch.optim.AdamW`."""

    _full_step = _full_step(torch.optim.AdamW)
