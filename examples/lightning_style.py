"""A module that knows its layers, its loss and its optimizer, and a trainer that knows none of them.

python examples/lightning_style.py

Where Lightning is installed (`pip install lightning`), its module and trainer are taken, else the few lines
below, which have its names. pyops needs no adapter for either.
"""

from __future__ import annotations

import digits
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pyops
from pyops import nn

try:
    from lightning import LightningModule, Trainer
except ImportError:

    class LightningModule(torch.nn.Module):  # type: ignore[no-redef]
        """The part of Lightning's that a training step needs."""

        def log(self, name: str, value: Tensor, **options: object) -> None:
            print(f"{name} {value.item():.4f}")

    class Trainer:  # type: ignore[no-redef]
        """Calls what a module has, in Lightning's order."""

        def __init__(self, max_steps: int, **options: object) -> None:
            self.max_steps = max_steps

        def fit(self, module: LightningModule, loader: DataLoader) -> None:
            optimizer = module.configure_optimizers()
            done = 0
            while done < self.max_steps:
                for index, batch in enumerate(loader):
                    if done == self.max_steps:
                        break
                    loss = module.training_step(batch, index)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    done += 1


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10),
        )  # fmt: skip
        pyops.convert(self.net)  # pyops.nn's layers already; now what is adjacent is fused
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self(images), labels)
        if index % 10 == 0:
            self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(arguments: list[str] | None = None) -> float:
    """Train, print and return the accuracy on the test set."""
    steps = digits.steps_from(arguments) or 100
    torch.manual_seed(0)
    train, test = digits.load()
    module = Digits()
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, DataLoader(TensorDataset(*train), batch_size=64, shuffle=True))
    correct = digits.accuracy(module, test)
    print(f"test accuracy {correct:.3f}")
    return correct


if __name__ == "__main__":
    main()
