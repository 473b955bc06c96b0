"""Runs that are refused before they start, with one line that says why; nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pyops.models.errors import ModelsError, TrainError
from pyops.models.training.trainer import Trainer

from tests.suite.training import run


@pytest.mark.parametrize("beneath", [False, True])
def test_output_that_is_a_file(tmp_path, beneath):
    (tmp_path / "taken").write_text("precious")
    output = tmp_path / "taken" / "folder" if beneath else tmp_path / "taken"
    with pytest.raises(TrainError, match="cannot be written"):
        run(output, epochs=1)
    assert (tmp_path / "taken").read_text() == "precious"


def test_output_without_permission(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Trainer, "train_epoch", lambda *_: pytest.fail("training has begun"))
    with pytest.raises(TrainError, match="cannot be written: Permission denied"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "mpl"}, "did you mean 'mlp'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"data": "mnist"}, "mnist is read from files"),
        ({"layers": "torhc"}, "did you mean 'torch'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"max_steps": -1}, "max_steps must be at least 1, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
        ({"seed": -1}, "seed must be in"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"resize": 0}, "resize must be at least 1, got 0"),
        ({"network": "lenet", "resize": 11}, "lenet takes images of at least 12 x 12, got 11 x 11"),
        ({"options": {"width": 2}}, "mlp has no option 'width'; its options: num_hiddens"),
        ({"network": "vgg11", "options": {"width": 0}}, "width must be at least 1"),
        ({"network": "nin", "options": {"dropout": 1.5}}, "nin: dropout probability"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"backend": "cppp"}, "backend 'cppp'"),
        ({"backend": "cpp", "layers": "torch"}, "but layers is 'torch'"),
        ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        ({"nesterov": True}, "nesterov needs a momentum above 0"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum and nesterov are for sgd, the optimizer is adam"),
        ({"weight_decay": -1.0}, "weight_decay must be a number of at least 0, got -1.0"),
        ({"l1": float("inf")}, "l1 must be a number of at least 0, got inf"),
        ({"lr_decay": 0.0}, "lr_decay must be a positive number, got 0.0"),
        ({"decay_every": 0}, "decay_every must be at least 1, got 0"),
        ({"decay_every": 1, "decay_patience": 1}, "decay_every and decay_patience exclude each other"),
        ({"decay_patience": -1}, "decay_patience must be at least 0, got -1"),
        ({"clip_norm": -1.0}, "clip_norm must be a positive number, got -1.0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"amp": "bfloat"}, "did you mean 'bfloat16'"),
        ({"init": "xaver"}, "did you mean 'xavier'"),
        ({"validation": 1.0}, "validation must be in [0, 1), got 1.0"),
        ({"validation": 1e-9}, "leaves a part empty"),
        ({"cuda_graph": True}, "cuda_graph takes one process on a GPU, got 1 on cpu"),
        ({"cuda_graph": True, "compile": True}, "cuda_graph excludes compile"),
        ({"early_stop": 3}, "early_stop needs a validation share above 0"),
        ({"folds": 1}, "folds must be from 2 to 1437"),
        ({"folds": 3, "validation": 0.5}, "folds makes its own validation parts"),
        ({"network": "linear_regression", "data": "digits"}, "predicts values, but digits has classes"),
        ({"data": "linear"}, "predicts classes, but linear has values"),
        ({"network": "logistic_regression", "data": "digits"}, "tells 2 classes apart, but digits has 10"),
        ({"data": "xor", "resize": 4}, "xor has no images to resize"),
        ({"network": "lenet", "data": "xor"}, "xor has no images to resize"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ModelsError) as caught:
        run(tmp_path / "new", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_device_that_is_not_there(tmp_path):
    with pytest.raises(TrainError, match="device 'cuda' cannot be used"):
        run(tmp_path, device="cuda")
