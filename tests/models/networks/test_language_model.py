"""Language models: their text, their training, and what they write."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pyops.models.data.load import load_data
from pyops.models.data.text import STEPS, decoded
from pyops.models.errors import DataError, NetworkError

import pyops
from pyops import models
from pyops.convert.swap import computing_type
from tests.suite.training import run, trainer_of

KINDS = ("rnn", "lstm", "gru")


@pytest.fixture
def text(tmp_path):
    """A file that repeats itself: there is something to learn."""
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    return path


def test_standard_library_is_the_default_text():
    data = load_data("text")
    assert (data.kind, data.input_shape) == ("text", (STEPS,))
    assert len(data.train_inputs) > 15_000
    assert 80 < data.num_outputs < 200
    assert "def " in decoded(data.train_inputs[:1000].flatten(), data.class_names)


def test_windows_follow_each_other(text):
    data = load_data("text", text)
    inputs = torch.cat([data.train_inputs, data.test_inputs])
    targets = torch.cat([data.train_targets, data.test_targets])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs[1:, 0], targets[:-1, -1])
    whole = decoded(torch.cat([inputs[:1, 0], targets.flatten()]), data.class_names)
    assert text.read_text().startswith(whole)
    batch, labels = data.train_batch(torch.tensor([3, 1]))
    assert torch.equal(batch, data.train_inputs[[3, 1]])
    assert torch.equal(labels, data.train_targets[[3, 1]])
    assert sum(len(labels) for _, labels in data.batches()) == len(data.test_targets)


def test_bad_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="must be a text file"):
        load_data("text", tmp_path)
    (tmp_path / "short").write_text("too short")
    with pytest.raises(DataError, match="at least 351 characters are needed"):
        load_data("text", tmp_path / "short")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(DataError, match="must be a text file"):
        load_data("text", tmp_path / "binary")


def test_networks_and_data_must_fit(tmp_path):
    with pytest.raises(NetworkError, match="lstm is trained on text, but digits has images"):
        run(tmp_path, "lstm", data="digits")
    with pytest.raises(NetworkError, match="mlp is trained on images or rows, but text has text"):
        run(tmp_path, "mlp", data="text")
    with pytest.raises(DataError, match="text has no images to resize"):
        run(tmp_path, "gru", resize=8)


@pytest.mark.parametrize("options", [{"embedding": -1}, {"num_layers": 0}, {"width": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(NetworkError):
        models.get_network("rnn").build((STEPS,), 5, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_state_carries_what_was_read(kind):
    torch.manual_seed(0)
    net = models.get_network(kind).build((STEPS,), 7, width=16, embedding=3, num_layers=2)
    tokens = torch.randint(7, (4, 9))
    whole = net(tokens)
    assert whole.shape == (4, 7, 9)
    first, state = net.advance(tokens[:, :5].t())
    second, _ = net.advance(tokens[:, 5:].t(), state)
    torch.testing.assert_close(torch.cat([first, second]).permute(1, 2, 0), whole)


def test_the_continuation_is_drawn_from_the_seed():
    torch.manual_seed(0)
    net = models.get_network("gru").build((STEPS,), 7, width=16)
    drawn = [net.continued(torch.arange(5), 20, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(net.continued(torch.arange(5), 0, torch.Generator())) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_learns_a_text_and_says_how_well(tmp_path, text, kind):
    options = {"data_root": text, "epochs": 40, "lr": 0.01, "batch_size": None, "options": {"width": 4}}
    metrics = run(tmp_path / "run", kind, **options)
    assert metrics["test_perplexity"] == pytest.approx(math.exp(metrics["test_loss"]))
    assert metrics["test_perplexity"] < 1.5
    assert 0.85 < metrics["test_accuracy"] <= 1
    assert 0.85 < metrics["train_accuracy"] <= 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["data"] == "text"
    assert metrics["history"]["test_perplexity"][-1] == metrics["test_perplexity"]
    continuation = (tmp_path / "run" / "continuation.txt").read_text()
    assert "quick brown" in continuation
    assert len(continuation) == STEPS + 1 + 1 + 300 + 1


def test_gradients_are_clipped(text):
    data = load_data("text", text)
    recipe = models.Recipe(num_epochs=1, lr=1.0, batch_size=4, clip_norm=0.01)
    trainer = trainer_of(recipe, "rnn", data=data)
    before = [p.detach().clone() for p in trainer.net.parameters()]
    trainer._step(*data.train_batch(torch.arange(4)))
    moved = torch.stack([(p - b).norm() for p, b in zip(trainer.net.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_convert_takes_the_recurrent_layers_of_any_model():
    net = models.get_network("lstm").build((STEPS,), 7, width=16, layers=torch.nn)
    tokens = torch.randint(7, (4, 9))
    wanted = net(tokens)
    pyops.convert(net)
    assert computing_type(net.recurrent) is pyops.nn.LSTM
    torch.testing.assert_close(net(tokens), wanted)
    pyops.revert(net)
    assert type(net.recurrent) is torch.nn.LSTM
