"""One call of every public function that is large enough to be shared by threads, for what a single op's
tests do not try: company, repetition, and what is kept. Outputs are of more than a megabyte where they may
be, so that the cache of large outputs takes part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import pyops.functional as F
from tests.suite.ops import OPS

#: Every function of ours, and the same of torch's, with torch's spelling where that is another.
OURS = SimpleNamespace(**{name: getattr(F, name) for name in F.__all__})
TORCHS = SimpleNamespace(
    **{name: getattr(torch.nn.functional, name, None) or getattr(torch, name, None) for name in F.__all__}
)
TORCHS.conv2d_max_pool2d = OPS["conv2d_max_pool2d"].torch
TORCHS.linear_cross_entropy = OPS["linear_cross_entropy"].torch

IMAGES, ROWS = (16, 16, 32, 40), (640, 512)
CLASSES, HIDDEN = ROWS[1], 64
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """``call(library, **tensors)`` of tensors of these shapes; one named ``target`` holds class indices."""

    shapes: dict[str, tuple[int, ...]]
    call: Callable[..., Any]

    def tensors(self, dtype: torch.dtype = torch.float32) -> Tensors:
        """The same numbers at every call; leaves that want a gradient, but for targets."""
        generator = torch.Generator().manual_seed(7)

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            if name in ("target", "tokens"):
                return torch.randint(CLASSES, shape, generator=generator)
            if name == "wanted":
                return torch.rand(shape, generator=generator).to(dtype)
            scale = HIDDEN**-0.5 if name in ("w_ih", "w_hh") else 1.0
            return (torch.randn(shape, generator=generator) * scale).to(dtype).requires_grad_()

        return {name: draw(name, shape) for name, shape in self.shapes.items()}

    def outputs(self, library: Any, tensors: Tensors) -> tuple[Tensor, ...]:
        found = self.call(library, **tensors)
        return found if isinstance(found, tuple) else (found,)

    def run(self, tensors: Tensors, library: Any = OURS) -> list[Tensor]:
        """Outputs and gradients. Upstream gradients are half of the outputs, which torch computes exactly
        (its other functions' last bits depend on the number of threads), those of scalars 1."""
        outputs = self.outputs(library, tensors)
        outputs = tuple(o for o in outputs if o.requires_grad)
        upstream = [torch.ones_like(o) if o.dim() == 0 else o.detach() / 2 for o in outputs]
        leaves = [t for t in tensors.values() if t.requires_grad]
        return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, upstream)]


def _activation(name: str) -> Workload:
    return Workload({"x": IMAGES}, lambda L, x: getattr(L, name)(x))


def _loss(name: str) -> Workload:
    return Workload({"x": ROWS, "wanted": ROWS}, lambda L, x, wanted: getattr(L, name)(x, wanted))


def _recurrent(name: str, gates: int, cell: bool) -> Workload:
    weights = {"w_ih": (gates * HIDDEN, 32), "w_hh": (gates * HIDDEN, HIDDEN)}
    biases = {"b_ih": (gates * HIDDEN,), "b_hh": (gates * HIDDEN,)}
    leading = (256,) if cell else (12, 64)
    state = (*(() if cell else (1,)), leading[-1], HIDDEN)

    def call(L: Any, x: Tensor, h: Tensor, **parameters: Tensor) -> Any:
        start = (h, h) if name.startswith("lstm") else h
        if cell:
            return getattr(L, name)(x, start, *parameters.values())
        return getattr(L, name)(x, start, tuple(parameters.values()), True, 1, 0.0, True, False, False)

    return Workload({"x": (*leading, 32), "h": state, **weights, **biases}, call)


_GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
_CHANNELS = {"weight": IMAGES[1:2], "bias": IMAGES[1:2]}
_FILTERS = {"weight": (24, IMAGES[1], 3, 3), "bias": (24,)}


def _dropout(L: Any, x: Tensor) -> Tensor:
    if L is not OURS:
        return L.dropout(x, 0.3)
    return L.dropout(x, 0.3, generator=torch.Generator().manual_seed(3))


WORKLOADS: dict[str, Workload] = {
    **{
        name: _activation(name)
        for name in (
            *("relu", "leaky_relu", "elu", "selu", "sigmoid", "tanh", "silu", "gelu", "softplus"),
            *("hardswish", "relu6", "hardtanh", "hardsigmoid"),
        )
    },
    **{
        name: _loss(name)
        for name in (
            *("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss"),
            "binary_cross_entropy_with_logits",
        )
    },
    **{name: _recurrent(name, gates, False) for name, gates in _GATES.items()},
    **{f"{name}_cell": _recurrent(f"{name}_cell", gates, True) for name, gates in _GATES.items()},
    "softmax": Workload({"x": ROWS}, lambda L, x: L.softmax(x, 1)),
    "log_softmax": Workload({"x": ROWS}, lambda L, x: L.log_softmax(x, 1)),
    "cross_entropy": Workload(
        {"x": ROWS, "target": ROWS[:1]}, lambda L, x, target: L.cross_entropy(x, target)
    ),
    "nll_loss": Workload({"x": ROWS, "target": ROWS[:1]}, lambda L, x, target: L.nll_loss(x, target)),
    "linear_cross_entropy": Workload(
        {"x": (320, HIDDEN), "weight": (CLASSES, HIDDEN), "target": (320,)},
        lambda L, x, weight, target: L.linear_cross_entropy(x, weight, target),
    ),
    "embedding": Workload(
        {"tokens": (1024,), "weight": (CLASSES, 320)}, lambda L, tokens, weight: L.embedding(tokens, weight)
    ),
    "linear": Workload(
        {"x": ROWS, "weight": (512, ROWS[1]), "bias": (512,)},
        lambda L, x, weight, bias: L.linear(x, weight, bias),
    ),
    "dropout": Workload({"x": IMAGES}, _dropout),
    "prelu": Workload({"x": IMAGES, "weight": IMAGES[1:2]}, lambda L, x, weight: L.prelu(x, weight)),
    "conv1d": Workload(
        {"x": (IMAGES[0], IMAGES[1], 512), "weight": (24, IMAGES[1], 5), "bias": (24,)},
        lambda L, x, weight, bias: L.conv1d(x, weight, bias, padding=2),
    ),
    "conv2d": Workload(
        {"x": IMAGES, **_FILTERS}, lambda L, x, weight, bias: L.conv2d(x, weight, bias, padding=1)
    ),
    "conv2d_max_pool2d": Workload(
        {"x": IMAGES, **_FILTERS},
        lambda L, x, weight, bias: L.conv2d_max_pool2d(x, weight, bias, activation="relu", kernel_size=2),
    ),
    "max_pool2d": Workload({"x": IMAGES}, lambda L, x: L.max_pool2d(x, 3, 2, 1)),
    "avg_pool2d": Workload({"x": IMAGES}, lambda L, x: L.avg_pool2d(x, 3, 2, 1)),
    "adaptive_avg_pool2d": Workload({"x": IMAGES}, lambda L, x: L.adaptive_avg_pool2d(x, (5, 7))),
    "interpolate": Workload({"x": IMAGES}, lambda L, x: L.interpolate(x, scale_factor=2)),
    "batch_norm": Workload(
        {"x": IMAGES, **_CHANNELS},
        lambda L, x, weight, bias: L.batch_norm(x, None, None, weight, bias, training=True),
    ),
    "layer_norm": Workload(
        {"x": ROWS, "weight": ROWS[1:], "bias": ROWS[1:]},
        lambda L, x, weight, bias: L.layer_norm(x, ROWS[1:], weight, bias),
    ),
    "group_norm": Workload(
        {"x": IMAGES, **_CHANNELS}, lambda L, x, weight, bias: L.group_norm(x, 4, weight, bias)
    ),
    "instance_norm": Workload(
        {"x": IMAGES, **_CHANNELS},
        lambda L, x, weight, bias: L.instance_norm(x, weight=weight, bias=bias),
    ),
}
