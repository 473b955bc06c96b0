"""Training steps in JAX: the same networks, numbers and SGD, compiled as one function by ``jax.jit``.

An extra (``pip install 'pyops-kernels[jax]'``): nothing is imported before the baseline is asked for.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from .checked_steps import checked_steps
from .networks import Run


def missing_reason() -> str | None:
    """Why the baseline cannot run; None where it can, on as many threads as torch has."""
    if importlib.util.find_spec("jax") is None:
        return "jax is not installed; pip install 'pyops-kernels[jax]' brings it"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.get_num_threads() not in (1, cores):
        return f"XLA takes 1 thread or one for each of the {cores} cores, torch has {torch.get_num_threads()}"
    return None


def knows(network: str) -> bool:
    return network in _FORWARDS


def _jax() -> SimpleNamespace:
    """jax and what is used of it, on the CPU with torch's number of threads."""
    if "jax" not in sys.modules:  # its runtime reads these once
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["NPROC"] = str(torch.get_num_threads())
        if torch.get_num_threads() == 1:
            flags = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    import jax
    import jax.numpy as numpy

    return SimpleNamespace(jax=jax, np=numpy, lax=jax.lax, nn=jax.nn)


class JaxTraining(Run):
    """The training steps of ``twin``, a run of the network called ``network`` made of torch's layers."""

    def __init__(self, network: str, twin: Any) -> None:
        j = _jax()
        self.inputs = twin.inputs
        forward = _FORWARDS[network]
        names = [name for name, _ in twin.net.named_parameters()]

        def loss(parameters: list[Any], images: Any, labels: Any) -> Any:
            logits = forward(j, dict(zip(names, parameters, strict=True)), images)  # classes last
            chances = j.nn.log_softmax(logits)
            return -j.np.take_along_axis(chances, labels[..., None], -1).mean()

        def step(parameters: list[Any], images: Any, labels: Any, lr: Any) -> tuple[list[Any], Any]:
            value, gradients = j.jax.value_and_grad(loss)(parameters, images, labels)
            return [p - lr * g for p, g in zip(parameters, gradients, strict=True)], value

        self._step = j.jax.jit(step, donate_argnums=0)
        self._gradients = j.jax.jit(j.jax.grad(loss))
        self._initial = [p.detach().clone() for p in twin.net.parameters()]
        self._batch = [j.np.asarray(self.inputs[name].numpy()) for name in ("images", "labels")]
        self._rate = j.np.float32
        self._no_rate = self._rate(0.0)
        self._reset(j)
        self._j = j

    def _reset(self, j: SimpleNamespace) -> None:
        # Copies: a step gives the memory of its parameters away.
        self._parameters = [j.np.array(p.numpy(), copy=True) for p in self._initial]

    def call(self) -> tuple[torch.Tensor, ...]:
        """One training step; its loss."""
        return (self._call(self._no_rate),)

    def _call(self, lr: Any) -> torch.Tensor:
        self._parameters, loss = self._j.jax.block_until_ready(self._step(self._parameters, *self._batch, lr))
        return torch.tensor(float(loss))

    def check(self) -> tuple[torch.Tensor, ...]:
        found = self._gradients(self._parameters, *self._batch)
        gradients = [torch.tensor(self._j.jax.device_get(g)) for g in found]
        checked = checked_steps(self.call()[0], gradients, lambda lr: self._call(self._rate(lr)))
        self._reset(self._j)
        return checked

    def compiled(self) -> JaxTraining:
        return self


def _linear(p: dict[str, Any], name: str, x: Any) -> Any:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _mlp(j: SimpleNamespace, p: dict[str, Any], x: Any) -> Any:
    return _linear(p, "3", j.nn.relu(_linear(p, "1", x.reshape(len(x), -1))))


def _lenet(j: SimpleNamespace, p: dict[str, Any], x: Any) -> Any:
    def features(x: Any, name: str, padding: int) -> Any:
        pads = [(padding, padding)] * 2
        x = j.lax.conv_general_dilated(
            x, p[f"{name}.weight"], (1, 1), pads, dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        x = j.nn.sigmoid(x + p[f"{name}.bias"][:, None, None])
        window = (1, 1, 2, 2)
        return j.lax.reduce_window(x, 0.0, j.lax.add, window, window, "VALID") / 4

    x = features(features(x, "0", 2), "3", 0)
    x = x.reshape(len(x), -1)
    return _linear(p, "11", j.nn.sigmoid(_linear(p, "9", j.nn.sigmoid(_linear(p, "7", x)))))


def _rnn(j: SimpleNamespace, p: dict[str, Any], tokens: Any) -> Any:
    names = [f"recurrent.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    w_ih, w_hh, b_ih, b_hh = (p[name] for name in names)
    # All steps' inputs are multiplied at once.
    given = j.nn.one_hot(tokens.T, w_ih.shape[1], dtype=w_ih.dtype) @ w_ih.T + (b_ih + b_hh)

    def advance(h: Any, x: Any) -> tuple[Any, Any]:
        h = j.np.tanh(x + h @ w_hh.T)
        return h, h

    _, hidden = j.lax.scan(advance, j.np.zeros((tokens.shape[0], w_hh.shape[0]), w_hh.dtype), given)
    return _linear(p, "output", hidden).swapaxes(0, 1)


_FORWARDS: dict[str, Callable[[SimpleNamespace, dict[str, Any], Any], Any]] = {
    "lenet": _lenet,
    "mlp": _mlp,
    "rnn": _rnn,
}
