"""Training: what it writes, that it resumes bit for bit, and that nothing it does loses a file."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from pyops.models import demo as demo_module
from pyops.models import registry
from pyops.models.checkpoint import (
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from pyops.models.config import TrainConfig
from pyops.models.data import load_data
from pyops.models.errors import ModelsError, TrainError
from pyops.models.files import atomic_write
from pyops.models.train import build_trainer, train
from pyops.models.trainer import Trainer

from pyops import models

ROOT = Path(__file__).resolve().parents[1]
FILES = ("metrics.json", "curves.png", "predictions.png", "model.safetensors", "checkpoint.pt")


#: 45 steps an epoch, whatever the recipes say.
DEFAULTS = {"quiet": True, "batch_size": 32, "lr": 0.5}


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Matrices of this size are slower on many threads, and far slower on a busy machine."""
    torch.set_num_threads(1)


def run(output: Path, network: str = "mlp", **options) -> dict:
    return train(TrainConfig(network, output=output, **{**DEFAULTS, **options}))


def folder_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_run(left: Path, right: Path):
    """Weights, step losses and history of two output folders are equal to the last bit."""
    states = [load_checkpoint(folder / "checkpoint.pt") for folder in (left, right)]
    weights = [state["model"] for state in states]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for name in ("step_losses", "history", "step", "epoch"):
        assert states[0]["progress"][name] == states[1]["progress"][name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Output folder of ``mlp`` on the digits with its default recipe."""
    folder = tmp_path_factory.mktemp("trained")
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    run(folder, lr=None, batch_size=None)
    torch.set_num_threads(number)
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


def test_softmax_regression(tmp_path):
    assert run(tmp_path, "softmax_regression", epochs=15)["test_accuracy"] >= 0.93


def test_lenet_learns_the_digits(tmp_path):
    metrics = run(tmp_path, "lenet", lr=None, batch_size=None)
    assert metrics["test_accuracy"] >= 0.96
    recipe = models.get_network("lenet").recipe_for("digits")
    assert (metrics["optimizer"], metrics["resize"], metrics["options"]) == ("adam", 28, {})
    assert metrics["epochs"] == recipe.num_epochs


@pytest.mark.parametrize(
    ("network", "epochs"), [("alexnet", 2), ("vgg11", 3), ("batchnorm_lenet", 1), ("resnet18", 1)]
)
def test_deep_networks_learn_the_digits(tmp_path, network, epochs):
    """The first epochs of the default recipe, which go from guessing (0.1) to far better."""
    assert run(tmp_path, network, epochs=epochs, lr=None, batch_size=None)["test_accuracy"] > 0.5


# ---- reproducibility and the torch twin


#: Small enough for a test, and without dropout: the libraries draw different masks.
TWINS = {
    "house_price": {},
    "linear_regression": {},
    "logistic_regression": {},
    "mlp": {},
    "mlp_dropout": {"options": {"dropout": 0.0}},
    "perceptron": {"batch_size": 1, "lr": 1.0},  # all of XOR at once pulls its weights nowhere
    "softmax_regression": {},
    "lenet": {},
    "alexnet": {"options": {"width": 16, "dropout": 0.0}},
    "nin": {"options": {"width": 8, "dropout": 0.0}},
    "vgg11": {"options": {"width": 16, "dropout": 0.0}},
    "vgg13": {"options": {"width": 16, "dropout": 0.0}},
    "vgg16": {"options": {"width": 16, "dropout": 0.0}},
    "vgg19": {"options": {"width": 16, "dropout": 0.0}},
    "batchnorm_lenet": {},
    "googlenet": {"resize": 16, "options": {"width": 16}},
    "rnn": {"options": {"width": 8}},
    "lstm": {"options": {"width": 8, "embedding": 12, "num_layers": 2}},
    "gru": {"options": {"width": 8}},
}


#: Width, side of the images and learning rate of networks whose training is chaotic: where a step of SGD
#: goes a little too far for a deep stack of batch normalisations, rounding errors grow tenfold in every
#: step, in torch's own training as well. They are compared in float64, at rates that keep clear of that.
RESIDUAL_TWINS = {
    "resnet18": (16, 64, 1e-3),
    "resnet34": (16, 64, 1e-3),
    "resnet50": (16, 64, 1e-5),
    "resnet56": (4, 8, 1e-3),
}


def test_every_network_has_a_twin_test():
    assert {*TWINS, *RESIDUAL_TWINS} == set(models.network_names())


@pytest.mark.parametrize("network", TWINS)
def test_torch_twin_for_20_steps(tmp_path, network):
    options = {"max_steps": 20, "batch_size": 8, "lr": 0.05, "optimizer": "sgd", **TWINS[network]}
    ours = run(tmp_path / "pyops", network, **options)
    theirs = run(tmp_path / "torch", network, layers="torch", **options)
    assert theirs["backend"] == theirs["layers"] == "torch"
    assert len(ours["step_losses"]) == 20
    assert ours["step_losses"][0] == pytest.approx(theirs["step_losses"][0], abs=1e-6)
    assert ours["step_losses"] == pytest.approx(theirs["step_losses"], abs=1e-4)


@pytest.mark.parametrize("network", RESIDUAL_TWINS)
def test_torch_twin_of_a_residual_network_for_20_steps(network):
    width, side, lr = RESIDUAL_TWINS[network]
    data = load_data("digits")
    data = replace(data, train_inputs=data.train_inputs[:8].double(), train_targets=data.train_targets[:8])
    recipe = models.Recipe(num_epochs=20, lr=lr, batch_size=8, resize=side, options={"width": width})
    losses = {}
    for library in ("pyops", "torch"):
        trainer = build_trainer(
            models.get_network(network), data, recipe, layers=library, seed=0, device=torch.device("cpu")
        )
        trainer.net.double()
        batch = trainer.data.train_batch(torch.arange(8))
        losses[library] = [trainer._step(*batch)[0].item() for _ in range(20)]
    assert losses["torch"][-1] < 0.7 * losses["torch"][0]
    assert losses["pyops"] == pytest.approx(losses["torch"], abs=1e-9)


@pytest.mark.parametrize("network", RESIDUAL_TWINS)
def test_residual_networks_train_as_their_torch_twins_begin(tmp_path, network):
    """By the usual way, in float32: the first loss, which no step has touched."""
    width, side, lr = RESIDUAL_TWINS[network]
    options = {"max_steps": 1, "batch_size": 8, "lr": lr, "resize": side, "options": {"width": width}}
    ours = run(tmp_path / "pyops", network, **options)
    theirs = run(tmp_path / "torch", network, layers="torch", **options)
    assert ours["step_losses"] == pytest.approx(theirs["step_losses"], abs=1e-4)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("lenet", {"lr": 0.5, "resize": 12}),
        ("linear_regression", {"lr": 0.1}),
        ("logistic_regression", {"lr": 0.1}),
        ("mlp", {"lr": 0.5, "options": {"num_hiddens": 8}}),
        ("rnn", {"lr": 0.5, "options": {"width": 64}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_small_networks_on_every_backend_equal_their_torch_twins(backend, network, options):
    """Twenty steps of small ones, on four samples: interpreters are a thousand times slower."""
    network = models.get_network(network)
    data = load_data(network.data)
    steps = slice(0, 3) if data.kind == "text" else slice(None)
    data = replace(
        data,
        train_inputs=data.train_inputs[:4, steps].clone(),
        train_targets=data.train_targets[:4, steps].clone()
        if data.kind == "text"
        else data.train_targets[:4],
    )
    recipe = models.Recipe(num_epochs=20, batch_size=4, **options)
    losses = {}
    for library in ("pyops", "torch"):
        trainer = build_trainer(network, data, recipe, layers=library, seed=0, device=torch.device("cpu"))
        batch = trainer.data.train_batch(torch.arange(4))
        losses[library] = [trainer._step(*batch)[0].item() for _ in range(20)]
    assert losses["torch"][-1] < 0.95 * losses["torch"][0]
    assert losses["pyops"] == pytest.approx(losses["torch"], abs=1e-4)


def test_reference_backend(tmp_path):
    ours = run(tmp_path / "cpp", max_steps=20, backend="cpp")
    plain = run(tmp_path / "reference", max_steps=20, backend="reference")
    assert (ours["backend"], plain["backend"]) == ("cpp", "reference")
    assert ours["step_losses"] == pytest.approx(plain["step_losses"], abs=1e-4)


def test_seed_decides_everything(tmp_path):
    first, again, other = (
        run(tmp_path / name, max_steps=10, seed=seed)["step_losses"]
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert first != other


def test_max_steps(tmp_path):
    metrics = run(tmp_path, max_steps=50)
    assert (metrics["steps"], metrics["epochs"]) == (50, 1)
    assert len(metrics["step_losses"]) == 50
    assert metrics["history"]["epoch"] == [1, 50 / 45]
    assert run(tmp_path, max_steps=50, epochs=1)["steps"] == 45


# ---- resuming


@pytest.fixture(scope="module")
def four_epochs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    run(folder, epochs=4)
    torch.set_num_threads(number)
    return folder


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
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "is saved: continue with --resume" in rest
    assert "Traceback" not in rest
    assert load_checkpoint(tmp_path / "checkpoint.pt")["progress"]["step"] > 0


def test_random_states_are_restored(tmp_path):
    def draw():
        return (
            random.random(),
            np.random.rand(3).tolist(),
            np.random.randn(),
            torch.rand(3).tolist(),
        )

    np.random.randn()  # NumPy now keeps a second normal number in store
    save_checkpoint(tmp_path / "state", random_states(torch.device("cpu")))
    first = draw()
    assert draw() != first
    restore_random_states(load_checkpoint(tmp_path / "state"), torch.device("cpu"))
    assert draw() == first


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


def test_nothing_to_resume(tmp_path):
    with pytest.raises(TrainError, match=r"nothing to resume: .*checkpoint\.pt does not exist"):
        run(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def _flip_byte_of_a_tensor(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not a checkpoint",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        _flip_byte_of_a_tensor,
    ],
    ids=["empty", "text", "half", "one byte short", "one bit"],
)
def test_damaged_checkpoint(tmp_path, four_epochs, damage):
    content = folder_content(four_epochs)
    (tmp_path / "metrics.json").write_bytes(content["metrics.json"])
    (tmp_path / "checkpoint.pt").write_bytes(damage(content["checkpoint.pt"]))
    before = folder_content(tmp_path)
    with pytest.raises(TrainError) as caught:
        run(tmp_path, epochs=5, resume=True)
    assert "damaged checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert folder_content(tmp_path) == before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "not a checkpoint of this version of pyops"),
        ([1], "not a checkpoint of this version of pyops"),
        ({"format": 1, "run": {}}, "format 1, expected 2"),
        ({"format": 2, "run": {}}, "is of a run with network None"),
    ],
    ids=["nothing", "list", "older", "no run"],
)
def test_foreign_checkpoint(tmp_path, value, message):
    torch.save(value, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainError, match=message):
        run(tmp_path, resume=True)


def test_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"format": 2, "model": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainError, match="damaged checkpoint"):
        run(tmp_path, resume=True)
    assert not (tmp_path / "pwned").exists()


# ---- files survive crashes


def test_crash_while_renaming_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"value": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(TrainError, match=r"cannot write .*checkpoint\.pt: No space left"):
        save_checkpoint(path, {"value": 2})
    assert load_checkpoint(path)["value"] == 1
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_crash_while_saving_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"value": 1})

    def fail(_, file):
        file.write(b"half of a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"value": 2})
    assert load_checkpoint(path)["value"] == 1
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_disk_full(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"value": torch.zeros(10)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(TrainError, match="cannot write"):
            save_checkpoint(path, {"value": torch.zeros(2**20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(load_checkpoint(path)["value"]) == 10
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_atomic_write_respects_the_umask(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with atomic_write(tmp_path / "atomic") as file:
        file.write(b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


_KILLED_SAVER = """
import os, sys
from pathlib import Path
import torch
from pyops.models.checkpoint import save_checkpoint

path, moment = Path(sys.argv[1]), sys.argv[2]
save_checkpoint(path, {"value": torch.full((2**18,), 1.0)})

def hang(*_):
    print("saving", flush=True)
    sys.stdin.read()

setattr(os, moment, hang)
save_checkpoint(path, {"value": torch.full((2**18,), 2.0)})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_sigkill_while_saving_keeps_the_old_file(tmp_path, moment):
    path = tmp_path / "checkpoint.pt"
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED_SAVER, str(path), moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdout.readline() == "saving\n"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert load_checkpoint(path)["value"].unique().tolist() == [1.0]
    save_checkpoint(path, {"value": 3})  # what the dead process left is no obstacle
    assert load_checkpoint(path)["value"] == 3
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_sigkill_while_training_and_resume(tmp_path, four_epochs):
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pyops.models.train import TrainConfig, train\n"
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


def test_training_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, max_steps=3)))
    thread.start()
    thread.join()
    assert results[0]["steps"] == 3


def test_divergence_stops_and_keeps_the_checkpoint(tmp_path):
    run(tmp_path, epochs=1)
    before = folder_content(tmp_path)
    with pytest.raises(TrainError) as caught:
        run(tmp_path, epochs=3, lr=1e20)
    assert "the loss became" in str(caught.value)
    assert "at step " in str(caught.value)
    after = folder_content(tmp_path)
    assert all(after[name] == before[name] for name in FILES)


# ---- refusing to start


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
    ],
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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


def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_module, "_ROUNDS", 1)
    summary = demo_module.demo(tmp_path, epochs=3)
    shown = capsys.readouterr().out
    assert str(tmp_path / "pyops" / "predictions.png") in shown
    for library in ("pyops", "torch"):
        assert f"{summary[library]['test_accuracy']:.4f}" in shown
        assert f"{summary[library]['samples_per_second']:,.0f}" in shown
        assert set(FILES) <= {path.name for path in (tmp_path / library).iterdir()}
    assert summary["step_loss_difference"] < 1e-3
