"""The choice of the loss, and random changes of training images."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from pyops.models import TrainConfig
from pyops.models.data.augmentation import Augmentation
from pyops.models.errors import TrainError
from pyops.models.registry import get_network, network_names
from pyops.models.tasks import LOSSES
from pyops.models.training.train import new_run
from torch import nn

from tests.suite.training import run

OPTIONS = {"network": "softmax_regression", "epochs": 2, "batch_size": 290}


def image_of_numbers(number: int, channels: int, height: int, width: int) -> torch.Tensor:
    count = number * channels * height * width
    return torch.arange(1.0, count + 1).reshape(number, channels, height, width)


@pytest.mark.parametrize("layers", ["pyops", "torch"])
def test_the_loss_asked_for_is_minimised(tmp_path: Path, layers: str) -> None:
    config = TrainConfig("linear_regression", loss="absolute_error", layers=layers, output=tmp_path)
    trainer = new_run(config).trainer
    inputs, targets = trainer.data.train_batch(torch.arange(10))
    expected = (trainer.net(inputs) - targets).abs().mean()
    loss, _ = trainer._step(inputs, targets)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_smoothed_loss_is_that_of_torch(tmp_path: Path) -> None:
    trainer = new_run(TrainConfig("softmax_regression", loss="label_smoothing", output=tmp_path)).trainer
    outputs, targets = torch.randn(7, 10), torch.arange(7)
    expected = nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)
    torch.testing.assert_close(trainer.loss(outputs, targets), expected)


def test_a_loss_is_kept_by_config_and_resume(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", **OPTIONS, loss="label_smoothing")
    run(tmp_path / "parts", **OPTIONS, loss="label_smoothing", max_steps=3)
    rest = run(tmp_path / "parts", **OPTIONS, resume=True)
    assert rest["step_losses"] == whole["step_losses"]
    assert whole["loss"] == rest["loss"] == "label_smoothing"
    config = tomllib.loads((tmp_path / "whole" / "config.toml").read_text())
    assert config["loss"] == "label_smoothing"
    assert run(tmp_path / "plain", **OPTIONS)["loss"] == "cross_entropy"


@pytest.mark.parametrize("name", network_names())
def test_every_loss_of_a_task_takes_its_outputs(name: str) -> None:
    task = get_network(name).task
    outputs = torch.randn(4, 1 if task.binary or not task.has_classes else 3, requires_grad=True)
    targets = torch.tensor([0, 1, 1, 0]) if task.has_classes else torch.rand(4, 1)
    for loss in task.losses:
        LOSSES[loss].make(nn)(outputs, task.loss_target(targets)).backward()
        assert outputs.grad.abs().sum() > 0


def test_every_second_image_is_mirrored() -> None:
    images = image_of_numbers(64, 1, 2, 3)
    augmentation = Augmentation(["flip"])
    augmentation.draw(64, (1, 2, 3), torch.Generator().manual_seed(0))
    changed = augmentation(images, torch.arange(64))
    flipped = [torch.equal(new, old.flip(-1)) for new, old in zip(changed, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(changed, images, strict=True)]
    assert all(one != other for one, other in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48


def test_a_crop_shifts_each_image_as_was_drawn() -> None:
    images = image_of_numbers(50, 2, 16, 9)
    augmentation = Augmentation(["crop"])
    augmentation.draw(50, (2, 16, 9), torch.Generator().manual_seed(0))
    changed = augmentation(images, torch.arange(50))
    shifts = set()
    for new, old in zip(changed, images, strict=True):
        padded = nn.functional.pad(old, (2, 2, 2, 2))
        places = [(r, c) for r in range(5) for c in range(5)]
        fits = [(r, c) for r, c in places if torch.equal(new, padded[:, r : r + 16, c : c + 9])]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert len(shifts) > 10


def test_draws_belong_to_images_and_not_to_batches() -> None:
    images = image_of_numbers(30, 1, 8, 8)
    augmentation = Augmentation(["flip", "crop"])
    augmentation.draw(30, (1, 8, 8), torch.Generator().manual_seed(1))
    order = torch.randperm(30)
    parts = [augmentation(images[some], some) for some in order.split(7)]
    assert torch.equal(torch.cat(parts), augmentation(images, torch.arange(30))[order])


def test_an_augmented_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    options = {**OPTIONS, "augment": "flip,crop"}
    whole = run(tmp_path / "whole", **options)
    run(tmp_path / "parts", **options, max_steps=7)
    rest = run(tmp_path / "parts", **OPTIONS, resume=True)
    assert rest["step_losses"] == whole["step_losses"]
    assert rest["augment"] == "flip,crop"
    assert run(tmp_path / "plain", **OPTIONS)["step_losses"] != whole["step_losses"]


def test_only_training_images_are_changed(tmp_path: Path) -> None:
    plain, changed = (
        new_run(TrainConfig("softmax_regression", augment=augment, output=tmp_path)).trainer
        for augment in (None, "flip,crop")
    )
    assert changed.evaluate().loss == plain.evaluate().loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "lenet", "augment": "flip,turn"}, "augment 'flip,turn': unknown augmentation 'turn'"),
        ({"network": "linear_regression", "augment": "flip"}, "augment 'flip' is for images, but linear"),
    ],
)
def test_augmentation_that_makes_no_sense_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        run(tmp_path, **options)
