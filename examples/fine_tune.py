"""Fine-tune a network that somebody else has written: ``pyops.convert`` is the only line of pyops.

python examples/fine_tune.py [--weights FILE]

The network is torchvision's ResNet-18 where torchvision is installed, else a small one of torch's layers.
``--weights`` names a file of its ``state_dict``; without one it starts as it is made: nothing is downloaded.
"""

from __future__ import annotations

import argparse
from itertools import islice

import digits
import torch
from torch import nn

import pyops


def small_resnet(num_classes: int) -> nn.Module:
    """What stands in for torchvision's: convolutions, batch norms and a head called ``fc``."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
            self.relu = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
            self.stem = nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU())
            self.blocks = nn.Sequential(Block(16), Block(16))
            self.fc = nn.Linear(16, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.blocks(self.stem(x)).mean((2, 3)))

    return Net()


def pretrained(weights: str | None) -> nn.Module:
    """A network of 1000 classes, with the ``weights`` of that file."""
    try:
        from torchvision.models import resnet18

        net = resnet18()
    except ImportError:
        net = small_resnet(1000)
    if weights is not None:
        net.load_state_dict(torch.load(weights, weights_only=True))
    return net


def main(arguments: list[str] | None = None) -> float:
    """Fine-tune, print and return the loss of the last batch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100, help="stop after so many steps")
    parser.add_argument("--weights", help="file of the network's state_dict")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    train, test = digits.load(side=32, channels=3)

    net = pretrained(given.weights)
    net.fc = nn.Linear(net.fc.in_features, 10)  # a new head, for ten classes
    net = pyops.convert(net)  # from here on pyops' kernels, with the same parameters and state_dict
    print(pyops.conversion_report(net).summary())

    body = [p for name, p in net.named_parameters() if not name.startswith("fc.")]
    groups = [{"params": body, "lr": 0.001}, {"params": net.fc.parameters(), "lr": 0.01}]
    optimizer = torch.optim.AdamW(groups)
    loss = torch.tensor(0.0)
    for step, (images, labels) in enumerate(islice(digits.batches(train, 64, epochs=100), given.steps)):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step:4}  loss {loss.item():.4f}")
    print(f"at the end  loss {loss.item():.4f}  test accuracy {digits.accuracy(net, test):.3f}")
    return loss.item()


if __name__ == "__main__":
    main()
