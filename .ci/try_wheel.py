"""Try an installed wheel, away from the source tree: ``python .ci/try_wheel.py`` from another folder.

Needs torch, numpy and the wheel, and nothing else of pyops.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import pyops
import pyops.functional as F


def model(layers) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        layers.Conv2d(3, 8, 3), layers.BatchNorm2d(8), layers.ReLU(), layers.MaxPool2d(2), nn.Flatten(),
        layers.Linear(8 * 49, 10),
    )  # fmt: skip


def gradients(net: nn.Module) -> list[torch.Tensor]:
    """Of one step, by the net's own loss."""
    inputs = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(net(inputs), torch.arange(8)).backward()
    return [parameter.grad for parameter in net.parameters()]


def main() -> None:
    source = Path(__file__).resolve().parents[1]
    home = Path(pyops.__file__).resolve()
    assert source not in home.parents, f"{home} is the source tree: start this from another folder"
    facts = pyops.info()
    assert facts["backends"]["cpu"]["cpp"] == "available", facts["backends"]
    with pyops.use_backend("reference"):
        expected = gradients(model(nn))
    with pyops.use_backend("cpp"):
        for found in (gradients(model(pyops.nn)), gradients(pyops.convert(model(nn)))):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    version, loaded = facts["pyops"], ", ".join(facts["loaded"].values())
    print(f"pyops {version}: python {facts['python']}, torch {facts['torch']}, {loaded}: works")


if __name__ == "__main__":
    main()
