"""``python -m tests.reliability.leak STEPS``: training steps of changing sizes, and what they leave behind.

Prints by how many bytes the process grew in the second half of the steps, and how many tensors it has more.
"""

from __future__ import annotations

import ctypes
import gc
import random
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import pyops
from pyops import functional as F


class Net(nn.Module):
    """Most layers; what it is given may have any size."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.GroupNorm(3, 12), nn.SiLU(), nn.Dropout(0.2)),
            *(nn.Conv2d(12, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16)),
        )
        self.words, self.rnn, self.out = nn.Embedding(50, 16), nn.GRU(16, 12), nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        read, _ = self.rnn(self.words(tokens))
        return self.norm(self.images(images) + self.out(read[-1]))


def step(net: nn.Module, rng: random.Random) -> None:
    """Forward and backward, and an evaluation, of a batch whose sizes are drawn."""
    batch, side, length = rng.randint(1, 9), rng.randint(6, 40), rng.randint(1, 9)
    images, tokens = torch.randn(batch, 3, side, side + 1), torch.randint(50, (length, batch))
    if rng.random() < 0.3:
        images = images.to(memory_format=torch.channels_last)
    target = torch.randint(16, (batch,))
    logits = net.train()(images, tokens)
    loss = F.cross_entropy(logits, target) + F.mse_loss(F.softmax(logits, 1), torch.zeros(batch, 16))
    weight = net.get_parameter("out.weight").t()
    (loss + F.linear_cross_entropy(logits[:, :12], weight.t(), target)).backward()
    net.zero_grad()
    with torch.no_grad():
        net.eval()(images, tokens)


def grown() -> tuple[int, int]:
    """Bytes of the process, when the C library has given back what it can, and how many tensors there are."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), sum(isinstance(o, Tensor) for o in gc.get_objects())


def main(steps: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyops.memory.set_output_cache_limit(8 << 20)
    rng, net = random.Random(0), Net()
    start = (0, 0)
    for i in range(steps):
        if i % 50 == 0:  # a new one, whose plans and packed weights go with it
            net = pyops.convert(Net())
        if i == steps // 2:
            start = grown()
        step(net, rng)
    net = pyops.convert(Net())
    end = grown()
    print(*(after - before for before, after in zip(start, end, strict=True)))


if __name__ == "__main__":
    with pyops.use_backend("cpp"):
        main(int(sys.argv[1]))
