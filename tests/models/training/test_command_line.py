"""What the command line says: one line, in the words that one types."""

from __future__ import annotations

import sys

import pytest
from pyops.models.errors import TrainError

import pyops
from pyops import cli
from tests.suite.training import run


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the command prints on stderr as it fails with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["pyops", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--momentum", "2"], "error: --momentum must be in [0, 1), got 2.0\n"),
        (["--clip-norm", "0"], "error: --clip-norm must be a positive number, got 0.0\n"),
        (
            ["--decay-every", "2", "--decay-patience", "1"],
            "error: --decay-every and --decay-patience exclude each other\n",
        ),
        (["--lr-decay", "0.5"], "error: --lr-decay does nothing without --decay-every or --decay-patience\n"),
        (
            ["--loss", "huber"],
            "error: --loss 'huber' does not fit a network for classification; "
            "choose of cross_entropy, label_smoothing\n",
        ),
        (
            ["--augment", "turn"],
            "error: --augment 'turn': unknown augmentation 'turn'; available: crop, flip\n",
        ),
    ],
)
def test_errors_name_the_flag(capsys, monkeypatch, tmp_path, arguments, message):
    assert said(capsys, monkeypatch, "train", "mlp", "--output", str(tmp_path), *arguments) == message


@pytest.mark.parametrize("name", ["/data/my_data/lr_decay.csv", "'batch_size'"])
def test_paths_and_quoted_words_stay_as_they_are(name):
    assert cli._with_flags(f"file {name} has no column") == f"file {name} has no column"


def test_version(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pyops", "--version"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pyops {pyops.__version__}\n"


def test_a_decay_without_its_schedule_was_ignored(tmp_path):
    with pytest.raises(TrainError, match="lr_decay does nothing without decay_every or decay_patience"):
        run(tmp_path, lr_decay=0.5)
    assert not any(tmp_path.iterdir())


def test_a_run_that_is_replaced_is_told_of(tmp_path, capsys):
    run(tmp_path, max_steps=1, quiet=False)
    assert "is replaced:" not in capsys.readouterr().err
    run(tmp_path, max_steps=1, quiet=False)
    assert f"the run that {tmp_path} holds is replaced:" in capsys.readouterr().err
    run(tmp_path, max_steps=2, resume=True, quiet=False)
    assert "is replaced:" not in capsys.readouterr().err
