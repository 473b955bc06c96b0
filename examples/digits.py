"""Handwritten digits for the examples: scikit-learn's 1797 images of 8 x 8 pixels, as tensors."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor

Samples = tuple[Tensor, Tensor]


def load(side: int = 8, channels: int = 1) -> tuple[Samples, Samples]:
    """Images [N, channels, side, side] in [0, 1] and labels [N], for training and for testing."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    if side != 8:
        images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear")
    images, labels = images.repeat(1, channels, 1, 1), torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return (images[train], labels[train]), (images[test], labels[test])


def batches(samples: Samples, size: int, epochs: int) -> Iterator[Samples]:
    """Shuffled batches of ``epochs`` epochs; torch's global seed decides the order."""
    images, labels = samples
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(size):
            yield images[chosen], labels[chosen]


@torch.no_grad()
def accuracy(net: torch.nn.Module, samples: Samples) -> float:
    """Share of ``samples`` that ``net`` labels correctly."""
    was_training = net.training
    net.eval()
    images, labels = samples
    correct = (net(images).argmax(1) == labels).float().mean().item()
    net.train(was_training)
    return correct


def steps_from(arguments: list[str] | None) -> int | None:
    """What ``--steps`` says; None is to the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=None, help="stop after so many steps")
    return parser.parse_args(arguments).steps
