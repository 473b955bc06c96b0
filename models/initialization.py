"""Weight initialisation shared by the networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn


def init_normal(net: nn.Module, std: float = 0.01) -> nn.Module:
    """Draw the weights of every linear layer from N(0, std^2), zero its bias; in place."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def init_xavier(net: nn.Module) -> nn.Module:
    """Draw the weights of every linear layer and convolution from Xavier's uniform distribution, zero the
    biases; in place.

    Its variance, 2 / (fan_in + fan_out), is the middle between what keeps the variance of the activations and
    what keeps that of the gradients from layer to layer.
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
