"""A run that was stopped, by its end, by Ctrl-C or by force, continues bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyops.models import registry
from pyops.models.errors import TrainError
from pyops.models.training.checkpoint import load_checkpoint
from pyops.models.training.config import read_toml
from pyops.models.training.trainer import Trainer

from pyops import models
from tests.suite.processes import ROOT, run_python
from tests.suite.training import FILES, assert_same_run, folder_content, run

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def four_epochs(tmp_path_factory) -> Path:
    """Output folder of ``mlp`` on the digits after four epochs that nothing stopped."""
    folder = tmp_path_factory.mktemp("four")
    run(folder, epochs=4)
    return folder


# ---- resuming


def test_resume_is_bit_exact(tmp_path, four_epochs):
    run(tmp_path, epochs=2)
    metrics = run(tmp_path, epochs=4, resume=True)
    assert_same_run(tmp_path, four_epochs)
    straight = json.loads((four_epochs / "metrics.json").read_text())
    for name in ("step_losses", "history", "test_accuracy", "test_loss", "steps"):
        assert metrics[name] == straight[name]


@pytest.mark.parametrize("steps", [1, 45, 70])
def test_resume_amid_an_epoch_is_bit_exact(tmp_path, four_epochs, steps):
    run(tmp_path, max_steps=steps)
    run(tmp_path, epochs=4, resume=True)
    assert_same_run(tmp_path, four_epochs)


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "l1": 1e-4, "clip_norm": 0.5},
        {"optimizer": "adamw", "lr": 0.003, "decay_every": 1, "accumulate": 3},
        {"validation": 0.3, "decay_patience": 0, "early_stop": 2, "lr": 4.0},
        {"amp": "float16", "init": "he"},
    ],
    ids=str,
)
def test_resume_with_options_is_bit_exact(tmp_path, options):
    network, options = "softmax_regression", {"lr": 0.1, **options}
    run(tmp_path / "straight", network, epochs=4, **options)
    run(tmp_path / "halves", network, epochs=2, **options)
    run(tmp_path / "halves", network, epochs=4, resume=True, lr=None, batch_size=None)
    assert_same_run(tmp_path / "straight", tmp_path / "halves")


class Noise(torch.nn.Module):
    """Adds noise of Python's, NumPy's and torch's global generators."""

    def forward(self, values):
        return values + random.gauss(0, 0.1) + np.random.normal(0, 0.1) + 0.1 * torch.randn_like(values)


def test_resume_restores_the_random_numbers_of_a_network(tmp_path, monkeypatch):
    def build(image_shape, num_classes, *, layers):
        head = layers.Linear(64, num_classes)
        return layers.Sequential(layers.Flatten(), layers.Dropout(0.5), Noise(), head)

    network = registry.Network("noisy", build, models.Recipe(2, 0.1, 64))
    monkeypatch.setitem(registry._networks, "noisy", network)
    run(tmp_path / "straight", "noisy")
    run(tmp_path / "halves", "noisy", epochs=1)
    torch.rand(7), random.random(), np.random.rand()
    run(tmp_path / "halves", "noisy", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "halves")
    run(tmp_path / "again", "noisy")  # the seed is that of all three
    assert_same_run(tmp_path / "straight", tmp_path / "again")


def test_resume_refuses_other_data(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 40)
    config = {"data_root": text, "batch_size": 4, "options": {"width": 32}, "lr": 0.01}
    run(tmp_path / "run", "rnn", epochs=1, **config)
    text.write_text("to be or not to me " * 40)
    with pytest.raises(TrainError, match="data_checksum"):
        run(tmp_path / "run", "rnn", epochs=2, resume=True, **config)


def test_language_model_resumes_bit_exactly(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 60)
    options = {"width": 16, "num_layers": 2, "dropout": 0.5, "embedding": 8}
    config = {"data_root": text, "batch_size": 16, "options": options, "optimizer": "adam", "lr": 0.01}
    run(tmp_path / "straight", "lstm", epochs=3, **config)
    run(tmp_path / "halves", "lstm", max_steps=7, **config)
    run(tmp_path / "halves", "lstm", epochs=3, resume=True, **config)
    assert_same_run(tmp_path / "straight", tmp_path / "halves")


#: With dropout, whose random numbers must not depend on what came before.
FOLDS = {"network": "mlp_dropout", "folds": 2, "epochs": 2, "lr": 0.1}


@pytest.fixture(scope="module")
def two_folds(tmp_path_factory) -> dict:
    return run(tmp_path_factory.mktemp("folds"), **FOLDS)


@pytest.mark.parametrize("stop_at", [2, 3])
def test_folds_resume_where_they_stopped(tmp_path, two_folds, monkeypatch, stop_at):
    """Killed between the two folds, or in the second: the first is not trained again."""
    original, count = Trainer.train_epoch, iter(range(100))

    def killed(self, *args):
        if next(count) == stop_at:
            raise SystemExit
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", killed)
        with pytest.raises(SystemExit):
            run(tmp_path / "killed", **FOLDS)
    trained = []
    monkeypatch.setattr(Trainer, "train_epoch", lambda self, *args: trained.append(original(self, *args)))
    assert run(tmp_path / "killed", resume=True, **FOLDS) == two_folds
    assert len(trained) == 4 - stop_at
    assert read_toml(tmp_path / "killed" / "config.toml")["folds"] == 2
    with pytest.raises(TrainError, match="nothing to resume"):
        run(tmp_path / "new", "softmax_regression", folds=3, resume=True)


def test_resuming_a_finished_run_changes_nothing_but_repeats_the_results(tmp_path):
    first = run(tmp_path, epochs=1)
    (tmp_path / "metrics.json").unlink()
    second = run(tmp_path, epochs=1, resume=True)
    assert first == second
    assert json.loads((tmp_path / "metrics.json").read_text()) == second


def test_resume_keeps_the_hyper_parameters(tmp_path):
    chosen = {"lr": 0.25, "batch_size": 48, "optimizer": "adam", "resize": 7, "options": {"num_hiddens": 9}}
    run(tmp_path, epochs=1, **chosen)
    metrics = run(tmp_path, epochs=2, resume=True, lr=None, batch_size=None)
    assert {name: metrics[name] for name in chosen} == chosen


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("network", "softmax_regression"),
        ("seed", 1),
        ("lr", 0.125),
        ("batch_size", 64),
        ("layers", "torch"),
        ("optimizer", "adam"),
        ("resize", 16),
        ("options", {"num_hiddens": 7}),
    ],
)
def test_resume_refuses_another_run(four_epochs, option, value):
    before = folder_content(four_epochs)
    with pytest.raises(TrainError) as caught:
        run(four_epochs, **{"epochs": 6, "resume": True, option: value})
    assert f"{option} " in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert folder_content(four_epochs) == before


def test_resume_refuses_fewer_epochs(four_epochs):
    before = folder_content(four_epochs)
    with pytest.raises(TrainError, match="already at step 180"):
        run(four_epochs, epochs=3, resume=True)
    assert folder_content(four_epochs) == before


def pyops_train(*arguments: str) -> str:
    """What ``pyops train`` says on stderr."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return run_python("-m", "pyops", "train", *arguments, environment=environment).stderr


def test_resume_on_the_command_line_takes_everything_from_the_run(tmp_path):
    """Before, an interrupted run of many epochs ended at the network's default, or was refused."""
    folder = str(tmp_path)
    options = ["--layers", "torch", "--seed", "7", "--lr", "0.25", "--epochs", "40"]  # its own: 30
    pyops_train("softmax_regression", *options, "--output", folder)
    said = pyops_train("--output", folder, "--resume")
    assert f"resuming {folder} with the options it has had\n" in said
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: metrics[name] for name in ("epochs", "layers", "seed", "lr")} == {
        "epochs": 40,
        "layers": "torch",
        "seed": 7,
        "lr": 0.25,
    }
    said = pyops_train("softmax_regression", "--output", folder, "--resume", "--epochs", "41")
    assert f"resuming {folder} with the options it has had, but with the given epochs\n" in said
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 41


def test_nothing_to_resume(tmp_path):
    with pytest.raises(TrainError, match=r"nothing to resume: .*checkpoint\.pt does not exist"):
        run(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


# ---- stopping


def interrupt_at(monkeypatch, step: int, number: int = signal.SIGINT):
    """Make the training step number ``step`` of the next run receive Ctrl-C, or another signal."""
    original, count = Trainer._step, iter(range(1, 10**6))

    def stepping(self, *batch):
        if next(count) == step:
            signal.raise_signal(number)
        return original(self, *batch)

    monkeypatch.setattr(Trainer, "_step", stepping)


@pytest.mark.parametrize(
    ("step", "number"),
    [(30, signal.SIGINT), (45, signal.SIGINT), (46, signal.SIGINT), (20, signal.SIGTERM)],
)
def test_ctrl_c_saves_the_last_step(tmp_path, four_epochs, monkeypatch, capsys, step, number):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, epochs=4, quiet=False)
    assert f"interrupted after step {step}" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"] == step
    assert not (tmp_path / "metrics.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    run(tmp_path, epochs=4, resume=True)
    assert_same_run(tmp_path, four_epochs)


def test_second_ctrl_c_acts_at_once(tmp_path, monkeypatch):
    original = Trainer._step

    def stepping(self, *batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return original(self, *batch)

    monkeypatch.setattr(Trainer, "_step", stepping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=1)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_ctrl_c_on_the_command_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "pyops", "train", "mlp", "--epochs", "100000", "--output", str(tmp_path)],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "is saved: continue with --resume" in rest
    assert "Traceback" not in rest
    assert load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"] > 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_sigkill_while_training_and_resume(tmp_path, four_epochs):
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pyops.models.training.config import TrainConfig\n"
        "from pyops.models.training.train import train\n"
        "train(TrainConfig('mlp', epochs=1000, batch_size=32, lr=0.5, output=sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    for line in process.stderr:
        if line.startswith("epoch 1/"):
            break
    process.kill()
    process.communicate()
    epoch = load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["epoch"]
    run(tmp_path, epochs=max(epoch, 4), resume=True)
    straight = json.loads((four_epochs / "metrics.json").read_text())
    resumed = json.loads((tmp_path / "metrics.json").read_text())
    assert resumed["step_losses"][:180] == straight["step_losses"]


def test_divergence_stops_and_keeps_the_checkpoint(tmp_path):
    run(tmp_path, epochs=1)
    before = folder_content(tmp_path)
    with pytest.raises(TrainError) as caught:
        run(tmp_path, epochs=3, lr=1e20)
    assert "the loss became" in str(caught.value)
    assert "at step " in str(caught.value)
    after = folder_content(tmp_path)
    assert all(after[name] == before[name] for name in FILES)
