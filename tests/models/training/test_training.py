"""A training run: what it writes and shows, and what decides its numbers."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from pyops.models.commands.demo import YOUR_OWN, demo
from pyops.models.data.load import load_data

from pyops import models
from tests.suite.training import FILES, assert_same_run, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Output folder of ``mlp`` on the digits with its default recipe."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, lr=None, batch_size=None)
    return folder


# ---- what a run writes


def test_digits_accuracy_and_metrics(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["test_accuracy"] >= 0.96
    assert metrics["train_accuracy"] >= 0.98
    assert metrics["train_loss"] < 0.05
    assert metrics["samples_per_second"] > 0
    assert metrics["backend"] == "cpp"
    assert metrics["layers"] == "pyops"
    assert (metrics["network"], metrics["data"], metrics["seed"]) == ("mlp", "digits", 0)
    recipe = models.get_network("mlp").recipe_for("digits")
    assert (metrics["lr"], metrics["batch_size"]) == (recipe.lr, recipe.batch_size)
    steps = recipe.num_epochs * -(-1437 // recipe.batch_size)
    assert (metrics["epochs"], metrics["steps"]) == (recipe.num_epochs, steps)
    assert len(metrics["step_losses"]) == steps
    assert metrics["step_losses"][0] == pytest.approx(2.3026, abs=0.02)  # ln 10: no knowledge yet
    history = metrics["history"]
    assert history["epoch"] == list(range(1, recipe.num_epochs + 1))
    assert {len(values) for values in history.values()} == {recipe.num_epochs}
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert history[name][-1] == metrics[name]


def test_train_loss_is_the_mean_over_samples(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    size = metrics["batch_size"]
    sizes = [min(size, 1437 - start) for start in range(0, 1437, size)]  # the last batch is smaller
    assert sizes[-1] < size
    losses = metrics["step_losses"][: len(sizes)]
    mean = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / 1437
    assert metrics["history"]["train_loss"][0] == pytest.approx(mean, rel=1e-12)


def test_files(trained):
    assert set(FILES) <= {path.name for path in trained.iterdir()}
    assert not list(trained.glob("*.tmp"))
    assert not list(trained.glob(".*"))


@pytest.mark.parametrize("name", ["curves.png", "predictions.png"])
def test_pictures_show_something(trained, name):
    from matplotlib import image

    content = (trained / name).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = torch.from_numpy(image.imread(trained / name))[..., :3]
    assert min(pixels.shape[:2]) >= 300
    assert len(pixels.reshape(-1, 3).unique(dim=0)) > 50
    assert pixels.std() > 0.1


def test_wrong_predictions_are_red(trained):
    from matplotlib import image

    red = torch.tensor([0xC8, 0x1E, 0x1E]) / 255
    pixels = torch.from_numpy(image.imread(trained / "predictions.png"))[..., :3]
    is_red = ((pixels - red).abs() < 0.01).all(-1)
    assert json.loads((trained / "metrics.json").read_text())["test_accuracy"] < 1
    assert is_red.sum() > 500


def test_safetensors_hold_the_trained_network(trained):
    data = load_data("digits")
    net = models.mlp(data.input_shape, data.num_outputs, layers=torch.nn)
    net.load_state_dict(safetensors.torch.load_file(trained / "model.safetensors"))
    accuracy = (net(data.test_inputs).argmax(1) == data.test_targets).double().mean().item()
    assert accuracy == json.loads((trained / "metrics.json").read_text())["test_accuracy"]


def test_tensorboard_events(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained), size_guidance={"scalars": 0}).Reload()
    metrics = json.loads((trained / "metrics.json").read_text())
    steps = [scalar.value for scalar in events.Scalars("loss/step")]
    assert steps == pytest.approx(metrics["step_losses"], rel=1e-6)
    accuracy = [scalar.value for scalar in events.Scalars("accuracy/test")]
    assert accuracy == pytest.approx(metrics["history"]["test_accuracy"], rel=1e-6)
    assert events.Tags()["graph"]
    assert {"train/inputs", "test/predictions", "test/confusion"} <= set(events.Tags()["images"])
    with Image.open(io.BytesIO(events.Images("train/inputs")[0].encoded_image_string)) as image:
        assert image.size == (8 * 8, 4 * 8)  # a grid of 32 digits


# ---- what decides its numbers


@pytest.mark.usefixtures("without_pictures")
def test_reference_backend(tmp_path):
    ours = run(tmp_path / "cpp", max_steps=20, backend="cpp")
    plain = run(tmp_path / "reference", max_steps=20, backend="reference")
    assert (ours["backend"], plain["backend"]) == ("cpp", "reference")
    assert ours["step_losses"] == pytest.approx(plain["step_losses"], abs=1e-4)


@pytest.mark.usefixtures("without_pictures")
def test_seed_decides_everything(tmp_path):
    first, again, other = (
        run(tmp_path / name, max_steps=10, seed=seed)["step_losses"]
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert first != other


@pytest.mark.usefixtures("without_pictures")
def test_max_steps(tmp_path):
    metrics = run(tmp_path, max_steps=50)
    assert (metrics["steps"], metrics["epochs"]) == (50, 1)
    assert len(metrics["step_losses"]) == 50
    assert metrics["history"]["epoch"] == [1, 50 / 45]
    assert run(tmp_path, max_steps=50, epochs=1)["steps"] == 45


def test_training_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, max_steps=3)))
    thread.start()
    thread.join()
    assert results[0]["steps"] == 3


@pytest.mark.gpu
def test_training_on_a_gpu_follows_the_cpu(tmp_path):
    here = run(tmp_path / "cpu", max_steps=20)
    there = run(tmp_path / "cuda", max_steps=20, device="cuda")
    assert there["device"] == "cuda"
    assert there["step_losses"] == pytest.approx(here["step_losses"], abs=1e-3)
    run(tmp_path / "halves", max_steps=10, device="cuda")
    run(tmp_path / "halves", max_steps=20, device="cuda", resume=True)
    assert_same_run(tmp_path / "halves", tmp_path / "cuda")


# ---- display, demo


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    run(tmp_path, epochs=2, quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("epoch 2/2  loss ")
    assert lines[1].endswith(" samples/s")
    assert lines[2].startswith("test accuracy ")
    assert lines[2].endswith(f"results in {tmp_path}")


def test_progress_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(tmp_path, epochs=2, quiet=False)
    shown = capsys.readouterr().err
    assert "mlp on digits: 100%" in shown
    assert "loss" in shown
    assert "accuracy" in shown
    assert "samples/s" in shown


def test_quiet(tmp_path, capsys):
    run(tmp_path, max_steps=2)
    assert capsys.readouterr() == ("", "")


def test_demo(tmp_path, capsys):
    summary = demo(tmp_path, epochs=2)
    shown, lines = capsys.readouterr()
    assert str(tmp_path / "demo.png") in shown
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    for library in ("pyops", "torch"):
        speed = f"{summary[library]['samples_per_second']:,.0f}"
        assert f"{summary[library]['test_accuracy']:.4f}" in shown
        assert speed in shown
        assert f"{speed} samples/s" in lines.splitlines()[-1]  # one quantity, wherever it is shown
        metrics = json.loads((tmp_path / library / "metrics.json").read_text())
        assert metrics["samples_per_second"] == summary[library]["samples_per_second"]
        assert set(FILES) <= {path.name for path in (tmp_path / library).iterdir()}
    assert summary["step_loss_difference"] < 1e-3
    assert "fused" in shown  # the report of the converted twin


def test_the_lines_that_the_demo_shows_run(capsys):
    exec(
        compile(YOUR_OWN, "demo", "exec"),
        {"model": torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())},
    )
    assert "Linear" in capsys.readouterr().out
