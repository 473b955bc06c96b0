"""A plain training loop: a LeNet with ReLU on handwritten digits, as one writes it with torch.

python examples/train_loop.py
"""

from __future__ import annotations

from itertools import islice

import digits
import torch

import pyops
import pyops.functional as F
from pyops import nn


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> float:
    """Train, print and return the loss of the last batch."""
    steps = digits.steps_from(arguments)
    torch.manual_seed(0)
    train, test = digits.load(side=28)
    net = lenet()
    optimizer = pyops.optim.AdamW(net.parameters(), lr=2e-3)
    loss = torch.tensor(0.0)
    for step, (images, labels) in enumerate(islice(digits.batches(train, 64, epochs=5), steps)):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:4}  loss {loss.item():.4f}  test accuracy {digits.accuracy(net, test):.3f}")
    print(f"at the end  loss {loss.item():.4f}  test accuracy {digits.accuracy(net, test):.3f}")
    return loss.item()


if __name__ == "__main__":
    main()
