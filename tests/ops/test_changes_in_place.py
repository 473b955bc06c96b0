"""What torch lets a caller change in place after a call may be changed, with torch's gradient."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops import functional as F
from pyops.backends import use_backend

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

LIBRARIES = (F, nn.functional)


def fused(name: str, **options: object) -> tuple[Function, Function]:
    """conv2d with an activation, and the same by torch."""
    torchs = getattr(nn.functional, name, None) or getattr(torch, name)
    return (
        lambda x, w, b: F.conv2d(x, w, b, activation=name),
        lambda x, w, b: torchs(nn.functional.conv2d(x, w, b)),
    )


def pooled(name: str) -> tuple[Function, Function]:
    _, torchs = fused(name)
    return (
        lambda x, w, b: F.conv2d_max_pool2d(x, w, b, activation=name, kernel_size=2),
        lambda x, w, b: nn.functional.max_pool2d(torchs(x, w, b), 2),
    )


def linear(name: str) -> tuple[Function, Function]:
    torchs = getattr(nn.functional, name)

    def flat(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1)[:, :27], w.flatten(1)

    return (
        lambda x, w, b: F.linear(*flat(x, w), b, activation=name),
        lambda x, w, b: torchs(nn.functional.linear(*flat(x, w), b)),
    )


def residual(name: str) -> tuple[Function, Function]:
    torchs = getattr(nn.functional, name)
    return (
        lambda x, w, b: F.conv2d(x, w, b, activation=name, residual=x[:, :1, 2:, 2:].expand(-1, 5, -1, -1)),
        lambda x, w, b: torchs(nn.functional.conv2d(x, w, b) + x[:, :1, 2:, 2:]),
    )


def alone(name: str) -> tuple[Function, Function]:
    ours, torchs = (getattr(library, name) for library in LIBRARIES)
    return (lambda x, w, b: ours(x * w.sum()) + b.sum()), (lambda x, w, b: torchs(x * w.sum()) + b.sum())


CALLS = {
    **{f"{name} alone": alone(name) for name in ("leaky_relu", "elu", "selu", "relu6")},
    **{f"conv2d, {name}": fused(name) for name in ("leaky_relu", "elu", "selu", "relu6")},
    **{f"conv2d, residual, {name}": residual(name) for name in ("leaky_relu", "selu")},
    **{f"conv2d, {name}, max_pool2d": pooled(name) for name in ("tanh", "sigmoid", "leaky_relu", "relu")},
    **{f"linear, {name}": linear(name) for name in ("leaky_relu", "elu")},
}


def arguments() -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((3, 3, 11, 7), (5, 3, 3, 3), (5,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("change", ["add", "zero", "none"])
def test_outputs(call: str, change: str) -> None:
    gradients = []
    with use_backend("cpp"):
        for function in CALLS[call]:
            given = arguments()
            output = function(*given)
            upstream = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
            if change == "add":
                output += given[2].sum()
            elif change == "zero":
                output[0] = 0.0
            gradients.append(torch.autograd.grad(output, given, upstream))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("call", ["conv2d, leaky_relu", "linear, elu", "conv2d, residual, selu"])
def test_double_backward_of_a_changed_output(call: str) -> None:
    found = []
    with use_backend("cpp"):
        for function in CALLS[call]:
            given = arguments()
            output = function(*given)
            output.mul_(2.0)
            first = torch.autograd.grad(output.square().sum(), given, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), given)
            found.append((first, second))
    torch.testing.assert_close(*found)


def test_linear_with_dropout() -> None:
    """A change adds nothing to the gradient: with it and without, it is the same."""
    gradients = []
    for change in (True, False):
        torch.manual_seed(3)
        x, w = (torch.randn(shape, requires_grad=True) for shape in ((37, 53), (29, 53)))
        output = F.linear(x, w, activation="relu", dropout_p=0.5)
        if change:
            output += 1.0
        gradients.append(torch.autograd.grad(output, (x, w), torch.ones_like(output)))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}])
def test_outputs_of_recurrent_layers(kind: str, options: dict) -> None:
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(7, 11, **options).double()
    ours = getattr(pyops.nn, kind)(7, 11, **options).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3, 7, dtype=torch.float64, requires_grad=True)
    gradients = []
    for layer in (ours, theirs):
        output, state = layer(x)
        output *= 3.0
        first = state if isinstance(state, Tensor) else state[0]
        gradients.append(torch.autograd.grad(output.square().sum() + first.sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_logits_after_the_loss(scale: float, reduction: str, weighted: bool) -> None:
    """As where the likeliest classes are found one after the other, by masking."""
    gradients = []
    target = torch.arange(257) % 31
    weight = torch.linspace(0.5, 2, 1000) if weighted else None
    for library in LIBRARIES:
        torch.manual_seed(0)
        x = torch.randn(257, 1000, requires_grad=True)
        logits = x * 2.0
        loss = library.cross_entropy(logits, target, weight, reduction=reduction)
        with torch.no_grad():
            logits[:, :31] = -torch.inf
        gradients.append(torch.autograd.grad(loss * scale, x, retain_graph=True)[0])
        gradients.append(torch.autograd.grad(loss * scale, x)[0])
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[3])


def test_kept_outputs_are_freed() -> None:
    """What notices a change holds none of the output's memory, and no cycle holds the output."""
    gc.collect()
    gc.disable()
    try:
        output = F.conv2d(*arguments(), activation="leaky_relu")
        assert output.grad_fn.kept._probe.untyped_storage().nbytes() == 0
        reference = weakref.ref(output)
        del output
        assert reference() is None
    finally:
        gc.enable()
