"""The practices as options of the trainer: each changes training as its formula says, alone and resumed."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from pyops.models import cuda_graph
from pyops.models.checkpoint import load_checkpoint
from pyops.models.config import (
    RECIPE_OPTIONS,
    TrainConfig,
    merged_config,
    parsed_option,
    read_toml,
    write_toml,
)
from pyops.models.data import load_data
from pyops.models.errors import ModelsError, TrainError
from pyops.models.optimization import Updater
from pyops.models.recipe import Recipe
from pyops.models.tasks import PerceptronLoss
from pyops.models.train import build_trainer, train
from pyops.models.trainer import Trainer
from torch import nn
from typer.testing import CliRunner

from pyops import cli, models

CPU = torch.device("cpu")
DEFAULTS = {"quiet": True, "batch_size": 32, "lr": 0.1}


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


def run(output: Path, network: str = "softmax_regression", **options) -> dict:
    return train(TrainConfig(network, output=output, **{**DEFAULTS, **options}))


def trainer_of(recipe: Recipe, network: str = "mlp", layers: str = "pyops"):
    return build_trainer(
        models.get_network(network), load_data("digits"), recipe, layers=layers, seed=0, device=CPU
    )


def weights_after(steps: int, **options) -> list[torch.Tensor]:
    """Parameters of a small MLP after some steps on the same batches."""
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=20, **options)
    trainer = trainer_of(replace(recipe, options={"num_hiddens": 8}))
    for i in range(steps):
        trainer._step(*trainer.data.train_batch(torch.arange(20 * i, 20 * i + 20)))
    return [parameter.detach() for parameter in trainer.net.parameters()]


# ---- one update


def updated(recipe: Recipe, gradients: list[float], start: float = 1.0) -> list[float]:
    """Values of a single weight after each of some updates with given gradients."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, start)
    updater = Updater(layer, recipe, CPU)
    values = []
    for gradient in gradients:
        updater.zero_grad()
        updater.backward(layer(torch.tensor([[gradient]])).sum())
        updater.step()
        values.append(layer.weight.item())
    return values


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.8, 0.4]),
        ({"momentum": 0.5}, [0.8, 0.3]),  # velocities 2, 0.5 * 2 + 4
        ({"momentum": 0.5, "nesterov": True}, [0.7, 0.05]),  # 2 + 0.5 * 2, 4 + 0.5 * 5
        ({"weight_decay": 0.5}, [0.75, 0.3125]),  # gradients 2 + 0.5 * 1, 4 + 0.5 * 0.75
        ({"l1": 1.0}, [0.7, 0.2]),  # gradients 2 + 1, 4 + 1
        ({"clip_norm": 3.0}, [0.8, 0.5]),  # gradients 2, 3
        ({"l1": 1.0, "clip_norm": 2.5}, [0.75, 0.5]),  # the penalty is clipped, too
    ],
    ids=str,
)
def test_updates_follow_their_formula(options, expected):
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=1, **options)
    assert updated(recipe, [2.0, 4.0]) == pytest.approx(expected, rel=1e-5)


def test_l1_pulls_towards_zero_from_both_sides():
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=1, l1=1.0)
    assert updated(recipe, [0.0], start=-1.0) == pytest.approx([-0.9])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_torchs(name):
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=1, optimizer=name, weight_decay=0.5)
    parameter = nn.Parameter(torch.ones(1))
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]([parameter], 0.1, weight_decay=0.5)
    expected = []
    for gradient in (2.0, 4.0):
        parameter.grad = torch.tensor([gradient])
        plain.step()
        expected.append(parameter.item())
    assert updated(recipe, [2.0, 4.0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "losses", "rates"),
    [
        ({}, [1, 1, 1], [1, 1, 1]),
        ({"decay_every": 2, "lr_decay": 0.5}, [1, 1, 1, 1], [1, 0.5, 0.5, 0.25]),
        ({"decay_patience": 1, "lr_decay": 0.5}, [1, 2, 2, 0.5, 2], [1, 1, 0.5, 0.5, 0.5]),
        ({"decay_patience": 0, "lr_decay": 0.1}, [1, 2, 2], [1, 0.1, 0.01]),
    ],
)
def test_learning_rate_decay(options, losses, rates):
    updater = Updater(nn.Linear(1, 1), Recipe(num_epochs=1, lr=1.0, batch_size=1, **options), CPU)
    found = []
    updater.optimizer.step()
    for loss in losses:
        updater.end_epoch(loss)
        found.append(updater.lr)
    assert found == pytest.approx(rates)


# ---- a step


@pytest.mark.parametrize("parts", [2, 3, 20])
def test_accumulation_takes_the_same_step(parts):
    """The batch of 20 in 2 equal parts, in 3 unequal ones, and one by one."""
    whole, accumulated = weights_after(3), weights_after(3, accumulate=parts)
    for ours, expected in zip(accumulated, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_amp_computes_in_16_bits_and_learns(tmp_path, dtype):
    plain, mixed = run(tmp_path / "plain", epochs=5), run(tmp_path / "amp", epochs=5, amp=dtype)
    assert mixed["step_losses"] != plain["step_losses"]
    assert mixed["step_losses"] == pytest.approx(plain["step_losses"], abs=0.1)
    assert mixed["test_accuracy"] == pytest.approx(plain["test_accuracy"], abs=0.02)


def test_compile_trains_the_same():
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=20)
    losses = {}
    for compiled in (False, True):
        trainer = trainer_of(replace(recipe, compile=compiled))
        assert isinstance(trainer._forward, torch._dynamo.OptimizedModule) == compiled
        batch = trainer.data.train_batch(torch.arange(20))
        losses[compiled] = [trainer._step(*batch)[0].item() for _ in range(3)]
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)


class FakeGraph:
    """Stands for CUDA in the module: a recording does nothing, and a replay repeats the step."""

    def __init__(self, monkeypatch):
        self.recorded = self.replayed = 0
        monkeypatch.setattr(cuda_graph, "on_side_stream", lambda step: step())
        monkeypatch.setattr(cuda_graph, "record", self.record)

    def record(self, step):
        self.recorded += 1
        results = (torch.zeros(()), torch.zeros((), dtype=torch.float64))

        def replay():
            self.replayed += 1
            for ours, theirs in zip(results, step(), strict=True):
                ours.copy_(theirs)

        return replay, results


def test_graphed_steps_are_the_steps(monkeypatch):
    """Warm-up, recording, replays and the short last batch of an epoch: together the same training."""
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=200, decay_every=1, lr_decay=0.5)
    plain, graphed = trainer_of(recipe), trainer_of(recipe)
    fake = FakeGraph(monkeypatch)
    graphed._graphed_step = cuda_graph.GraphedStep(graphed._step)
    for trainer in (plain, graphed):
        trainer.train_epoch()
        trainer.train_epoch()
    assert graphed.progress.step_losses == plain.progress.step_losses
    assert graphed.progress.history == plain.progress.history
    # Of 16 steps 3 warm up, and 2 have but 37 samples.
    assert (fake.recorded, fake.replayed) == (1, 16 - 3 - 2)


def test_recorded_steps_see_the_learning_rate_change():
    recipe = Recipe(num_epochs=1, lr=1.0, batch_size=1, cuda_graph=True, decay_every=1, lr_decay=0.5)
    updater = Updater(nn.Linear(1, 1), recipe, CPU)
    rate = updater.optimizer.param_groups[0]["lr"]
    updater.optimizer.step()
    updater.end_epoch(1.0)
    assert (rate.item(), updater.lr) == (0.5, 0.5)
    state = updater.state_dict()
    other = Updater(nn.Linear(1, 1), recipe, CPU)
    rate = other.optimizer.param_groups[0]["lr"]
    other.load_state_dict(state)
    assert other.optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_cuda_graph(tmp_path, optimizer):
    options = {"device": "cuda", "epochs": 2, "optimizer": optimizer, "decay_every": 1, "lr": 0.01}
    plain = run(tmp_path / "plain", "mlp", **options)
    graphed = run(tmp_path / "graphed", "mlp", cuda_graph=True, **options)
    assert graphed["step_losses"] == pytest.approx(plain["step_losses"], abs=1e-4)


@pytest.mark.parametrize(
    ("rule", "std"),
    [("normal", 0.01), ("he", (2 / 64) ** 0.5), ("xavier", (2 / (64 + 256)) ** 0.5), ("constant", 0.0)],
)
def test_init_rules(rule, std):
    net = trainer_of(Recipe(1, 0.1, 20, init=rule)).net
    assert net[1].weight.std().item() == pytest.approx(std, rel=0.05)
    assert net[1].weight.mean().item() == pytest.approx(1.0 if rule == "constant" else 0.0, abs=0.01)
    assert not net[1].bias.any()


# ---- validation and early stopping


def test_validation_part_is_taken_from_the_training_part():
    data = load_data("digits")
    split = data.with_validation(0.2, seed=3)
    assert len(split.validation[1]) == 287
    assert len(split.train_targets) == 1437 - 287
    together = torch.cat([split.train_inputs, split.validation[0]])
    assert torch.equal(together.sum(0), data.train_inputs.sum(0))
    assert torch.equal(split.test_inputs, data.test_inputs)
    assert torch.equal(data.with_validation(0.2, seed=3).validation[1], split.validation[1])
    assert not torch.equal(data.with_validation(0.2, seed=4).validation[1], split.validation[1])


def test_validation_is_in_the_history(tmp_path):
    metrics = run(tmp_path, epochs=3, validation=0.25)
    for name in ("validation_loss", "validation_accuracy"):
        assert len(metrics["history"][name]) == 3
        assert metrics[name] == metrics["history"][name][-1]
    assert metrics["validation_accuracy"] > 0.8


def test_early_stopping_keeps_the_best_weights(tmp_path):
    """A learning rate so large that the loss jumps about."""
    metrics = run(tmp_path, epochs=60, validation=0.3, early_stop=3, lr=8.0)
    losses = metrics["history"]["validation_loss"]
    best = losses.index(min(losses)) + 1
    assert metrics["epochs"] == len(losses) == best + 3 < 60
    assert metrics["test_accuracy"] == metrics["history"]["test_accuracy"][best - 1]
    assert metrics["test_loss"] == pytest.approx(metrics["history"]["test_loss"][best - 1], rel=1e-12)


def test_folds_are_disjoint_and_cover_everything():
    data = load_data("digits")
    folds = [data.fold(i, 5) for i in range(5)]
    sizes = [len(fold.validation[1]) for fold in folds]
    assert sum(sizes) == 1437
    assert max(sizes) - min(sizes) <= 1
    held_out = torch.cat([fold.validation[0] for fold in folds])
    assert torch.equal(held_out.sum(0), data.train_inputs.sum(0))
    assert all(len(fold.train_targets) + size == 1437 for fold, size in zip(folds, sizes, strict=True))


def test_cross_validation(tmp_path):
    summary = run(tmp_path, folds=3, epochs=2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    single = [json.loads((tmp_path / f"fold-{i}" / "metrics.json").read_text()) for i in (1, 2, 3)]
    accuracies = torch.tensor([metrics["validation_accuracy"] for metrics in single], dtype=torch.float64)
    assert len(set(accuracies.tolist())) > 1
    assert summary["validation_accuracy"] == pytest.approx(accuracies.mean().item())
    assert summary["validation_accuracy_std"] == pytest.approx(accuracies.std().item())


# ---- resuming


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
def test_resume_is_bit_exact(tmp_path, options):
    run(tmp_path / "straight", epochs=4, **options)
    run(tmp_path / "halves", epochs=2, **options)
    run(tmp_path / "halves", epochs=4, resume=True, lr=None, batch_size=None)
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("straight", "halves")]
    assert all(torch.equal(states[0]["model"][key], value) for key, value in states[1]["model"].items())
    for name in ("step_losses", "history", "best_loss", "best_epoch"):
        assert states[0]["progress"][name] == states[1]["progress"][name]


@pytest.mark.parametrize("stop_at", [2, 3])
def test_folds_resume_where_they_stopped(tmp_path, monkeypatch, stop_at):
    """Killed between the two folds, or in the second: the first is not trained again. With dropout, whose
    random numbers must not depend on what came before."""
    config = {"network": "mlp_dropout", "folds": 2, "epochs": 2}
    straight = run(tmp_path / "straight", **config)
    original, count = Trainer.train_epoch, iter(range(100))

    def killed(self, *args):
        if next(count) == stop_at:
            raise SystemExit
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", killed)
        with pytest.raises(SystemExit):
            run(tmp_path / "killed", **config)
    trained = []
    monkeypatch.setattr(Trainer, "train_epoch", lambda self, *args: trained.append(original(self, *args)))
    assert run(tmp_path / "killed", resume=True, **config) == straight
    assert len(trained) == 4 - stop_at
    assert read_toml(tmp_path / "killed" / "config.toml")["folds"] == 2
    with pytest.raises(TrainError, match="nothing to resume"):
        run(tmp_path / "new", folds=3, resume=True)


# ---- bad options, configuration files


@pytest.mark.parametrize(
    ("options", "message"),
    [
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


def test_every_option_of_a_recipe_is_one_of_a_config():
    assert set(RECIPE_OPTIONS) < {field.name for field in fields(TrainConfig)}


def test_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('network = "vgg11"\nlr = 1\nnesterov = true\nfolds = 3\n[options]\nwidth = 4\n')
    entries = read_toml(path)
    assert entries == {"network": "vgg11", "lr": 1, "nesterov": True, "folds": 3, "options": {"width": 4}}
    assert TrainConfig(**entries).options == {"width": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "not TOML"),
        ("learning_rate = 1.0", "unknown entry 'learning_rate'"),
        ("momentun = 0.5", "did you mean 'momentum'"),
        ('lr = "fast"', "lr must be of type float, got 'fast'"),
        ("epochs = 1.5", "epochs must be of type int, got 1.5"),
        ("epochs = true", "epochs must be of type int, got True"),
        ("options = 3", "options must be of type dict, got 3"),
    ],
)
def test_bad_toml(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(TrainError) as caught:
        read_toml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('network = "vgg11"\nlr = 0.5\nseed = 3\n[options]\nwidth = 4\ndropout = 0.1\n')
    config = merged_config(path, {"lr": 0.25, "seed": 0}, {"width": 8})
    assert (config.network, config.lr, config.seed) == ("vgg11", 0.25, 0)
    assert config.options == {"width": 8, "dropout": 0.1}
    with pytest.raises(TrainError, match="no network"):
        merged_config(None, {}, {})


def test_command_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('network = "mlp"\nmomentum = 0.5\nepochs = 1\nbatch_size = 300\n')
    output = tmp_path / "out"
    arguments = ["train", "--config", str(path), "--nesterov", "--batch-size", "200", "--quiet"]
    arguments += ["--option", "num_hiddens=12"]
    result = CliRunner().invoke(cli.app, [*arguments, "--clip-norm", "1", "--output", str(output)])
    assert result.exit_code == 0
    metrics = json.loads((output / "metrics.json").read_text())
    expected = {"momentum": 0.5, "nesterov": True, "batch_size": 200, "clip_norm": 1.0, "seed": 0}
    expected["options"] = {"num_hiddens": 12}
    assert {name: metrics[name] for name in expected} == expected


def test_a_run_leaves_the_config_that_repeats_it(tmp_path):
    chosen = {"momentum": 0.5, "nesterov": True, "seed": 5, "max_steps": 20, "validation": 0.25}
    first = run(tmp_path / "first", "mlp", options={"num_hiddens": 9}, **chosen)
    config = merged_config(tmp_path / "first" / "config.toml", {"output": tmp_path / "second"}, {})
    second = train(replace(config, quiet=True))
    for name in ("samples_per_second", "training_seconds"):
        assert first.pop(name) > 0
        del second[name]
    assert second == first
    assert first["options"] == {"num_hiddens": 9}
    texts = [(tmp_path / name / "config.toml").read_text() for name in ("first", "second")]
    assert texts[0] == texts[1]


def test_toml_strings_survive(tmp_path):
    entries = {"network": "mlp", "data_root": 'C:\\a "b"\n\u00e9', "lr": 1e-7, "seed": 3, "resume": False}
    write_toml(tmp_path / "run.toml", {**entries, "options": {"width": 4}})
    assert read_toml(tmp_path / "run.toml") == {**entries, "options": {"width": 4}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_hiddens=512", ("num_hiddens", 512)),
        ("num-layers = 2", ("num_layers", 2)),
        ("dropout=0.5", ("dropout", 0.5)),
        ("flag=true", ("flag", True)),
        ("kind=a=b", ("kind", "a=b")),
    ],
)
def test_network_options_of_the_command_line(text, expected):
    assert parsed_option(text) == expected


def test_bad_network_options(tmp_path):
    for text in ("num_hiddens", "=3"):
        with pytest.raises(TrainError, match="expected NAME=VALUE"):
            parsed_option(text)
    arguments = ["train", "mlp", "--option", "hiddens=3", "--output", str(tmp_path / "new")]
    result = CliRunner().invoke(cli.app, arguments)
    assert "mlp has no option 'hiddens'; its options: num_hiddens" in str(result.exception)


def test_missing_toml(tmp_path):
    with pytest.raises(TrainError, match="cannot be read: No such file"):
        read_toml(tmp_path / "run.toml")


# ---- the first networks of the notes


def test_linear_regression_recovers_the_parameters(tmp_path):
    metrics = run(tmp_path, "linear_regression", lr=None, batch_size=None)
    assert metrics["parameter_error"] < 5e-3
    assert metrics["test_loss"] == pytest.approx(1e-4, rel=0.3)  # the noise is left
    assert "test_accuracy" not in metrics
    names = {path.name for path in tmp_path.iterdir()}
    assert "curves.png" in names
    assert "predictions.png" not in names


def test_xor_is_for_the_mlp_and_not_for_the_perceptron(tmp_path):
    line = run(tmp_path / "perceptron", "perceptron", lr=None, batch_size=None)
    assert max(line["history"]["test_accuracy"]) <= 0.75
    layers = run(tmp_path / "mlp", "mlp", data="xor", lr=None, batch_size=None)
    assert layers["test_accuracy"] == 1.0


def test_perceptron_separates_what_a_line_can():
    data = replace(load_data("xor"), train_targets=torch.tensor([0, 0, 0, 1]))
    data = replace(data, test_targets=data.train_targets)
    network = models.get_network("perceptron")
    trainer = build_trainer(network, data, network.recipe, layers="pyops", seed=0, device=CPU)
    for _ in range(20):
        trainer.train_epoch()
    assert trainer.progress.history["test_accuracy"][-1] == 1.0
    assert trainer.progress.step_losses[-4:] == [0.0] * 4


def test_perceptron_loss_is_rosenblatts_rule():
    output = torch.tensor([[2.0], [-1.0], [0.0], [3.0]], requires_grad=True)
    target = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    loss = PerceptronLoss()(output, target)
    assert loss.item() == (1 + 3) / 4
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient.flatten().tolist() == [0.0, -0.25, 0.25, 0.25]


def test_logistic_regression(tmp_path):
    assert run(tmp_path, "logistic_regression", lr=None, batch_size=None)["test_accuracy"] >= 0.95


def test_mlp_dropout(tmp_path):
    metrics = run(tmp_path, "mlp_dropout", epochs=25, lr=None, batch_size=None)
    assert metrics["test_accuracy"] >= 0.9
    net = models.mlp_dropout((1, 8, 8), 10)
    assert [module.p for module in net if isinstance(module, nn.Dropout)] == [0.2, 0.5]
