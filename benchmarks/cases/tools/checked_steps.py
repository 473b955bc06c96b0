"""What of some training steps is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

#: The compared steps, each meant to lower the loss by this share of it: a narrow VGG, whose gradients are
#: small, would else change it by little more than a rounding.
CHECKED_STEPS, _SHARE = 3, 0.02


def checked_steps(
    first: torch.Tensor, gradients: Sequence[torch.Tensor], step: Callable[[float], torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The loss, how it changes over some steps, and the gradients of the first.

    ``first`` is the loss and ``gradients`` are those of the initial parameters; ``step`` does one with a
    learning rate and returns the loss before it.
    """
    square = sum(gradient.double().square().sum().item() for gradient in gradients)
    rate = _SHARE * first.item() / square
    losses = [step(rate) for _ in range(CHECKED_STEPS + 1)]
    # Beside the loss itself a missing update would be too small to see.
    return (first, torch.stack(losses[1:]) - first, *gradients)
