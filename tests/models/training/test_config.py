"""The configuration of a run: TOML files, flags, and options of a network."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from pyops.models.errors import TrainError
from pyops.models.training.config import (
    RECIPE_OPTIONS,
    TrainConfig,
    merged_config,
    parsed_option,
    read_toml,
    write_toml,
)
from pyops.models.training.train import train
from typer.testing import CliRunner

from pyops import cli
from tests.suite.training import run

pytestmark = pytest.mark.usefixtures("without_pictures")


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
