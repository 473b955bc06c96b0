"""Weight initialisation shared by the networks."""

from __future__ import annotations

from torch import nn


def init_normal(net: nn.Module, std: float = 0.01) -> nn.Module:
    """Draw the weights of every linear layer from N(0, std^2), zero its bias; in place."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
