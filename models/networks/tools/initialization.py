"""Weight initialisation shared by the networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn


def init_normal(net: nn.Module, std: float = 0.01) -> nn.Module:
    """Draw the weights of every linear layer and convolution from N(0, std^2), zero the biases; in place."""
    return _init(net, partial(nn.init.normal_, std=std))


def init_xavier(net: nn.Module) -> nn.Module:
    """Draw the weights of every linear layer and convolution from Xavier's uniform distribution, zero the
    biases; in place.

    Its variance, 2 / (fan_in + fan_out), is a compromise: one value would keep the variance of the
    activations from layer to layer, another that of the gradients.
    """
    return _init(net, nn.init.xavier_uniform_)


def init_he(net: nn.Module) -> nn.Module:
    """Draw the weights of every linear layer and convolution from He's normal distribution, zero the biases;
    in place.

    Its variance, 2 / fan_in, makes up for the half of the signal that every ReLU cuts off.
    """
    return _init(net, partial(nn.init.kaiming_normal_, nonlinearity="relu"))


def _init(net: nn.Module, draw: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def init_constant(net: nn.Module) -> nn.Module:
    """Set all weights of linear layers and convolutions to 1, their biases to 0; in place.

    This shows why initial weights must differ: all units of a layer stay equal, and a network of any width
    learns only what one unit can.
    """
    return _init(net, nn.init.ones_)


#: By the names of :data:`pyops.models.recipe.INIT_RULES`.
RULES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "constant": init_constant,
    "he": init_he,
    "normal": init_normal,
    "xavier": init_xavier,
}
