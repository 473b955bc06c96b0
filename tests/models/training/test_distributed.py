"""Training by several processes: the steps are those of one process, and one of them writes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pyops.models import registry
from pyops.models.training.checkpoint import load_checkpoint
from pyops.models.training.config import TrainConfig
from pyops.models.training.distributed import ALONE, Workers
from pyops.models.training.train import train

from pyops import models
from tests.suite.processes import ROOT

#: 1437 digits in batches of 359: the last one has a single sample, so that one process has none.
MLP = {"network": "mlp", "epochs": 2, "batch_size": 359, "lr": 0.5, "accumulate": 3, "clip_norm": 1.0}
NOISY = {"network": "mlp_dropout", "batch_size": 256, "lr": 0.5}

#: 1437 digits in batches of 256: the last one has 157, which are shared unevenly.
NORMALIZED = {"network": "normalized", "epochs": 2, "batch_size": 256, "lr": 0.5}


def register_normalized() -> None:
    """Make a network with batch normalisation known, for this process."""

    def build(input_shape, num_outputs, *, layers):
        hidden = (layers.Linear(64, 16), layers.BatchNorm1d(16), layers.ReLU())
        return layers.Sequential(layers.Flatten(), *hidden, layers.Linear(16, num_outputs))

    network = registry.Network("normalized", build, models.Recipe(2, 0.5, 256))
    registry._networks["normalized"] = network


_SCRIPT = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from pyops.models.training.config import TrainConfig
from pyops.models.training.distributed import leave_group
from pyops.models.errors import TrainError
from pyops.models.training.train import train
from tests.models.training import test_distributed as here

root = Path(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
train(TrainConfig(output=root / "mlp", **here.MLP))
here.register_normalized()
train(TrainConfig(output=root / "normalized", **here.NORMALIZED))
train(TrainConfig(output=root / "straight", epochs=2, **here.NOISY))
train(TrainConfig(output=root / "halves", max_steps=8, **here.NOISY))
train(TrainConfig(output=root / "halves", epochs=2, resume=True, **here.NOISY))
try:
    train(TrainConfig("mlp", output=root / "diverging", lr=1e20))
except TrainError as error:
    (root / f"error-{rank}").write_text(str(error))
dist.barrier()
leave_group()
"""
#: What the C++ runtime says when a thread of torch's gloo outlives the process group: seen once in dozens of
#: runs, after all was written, and not a thing that pyops has a hand in.
_TORCH_FELL_DOWN = "terminate called without an active exception"


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, str]:
    """Folder of what two processes wrote, and what they said."""
    for _ in range(2):
        root = tmp_path_factory.mktemp("pair")
        (root / "script.py").write_text(_SCRIPT)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*torchrun, str(root / "script.py"), str(root)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if _TORCH_FELL_DOWN not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return root, done.stderr


def test_two_processes_take_the_steps_of_one(pair, tmp_path, threads):
    torch.set_num_threads(1)
    alone = train(TrainConfig(output=tmp_path, quiet=True, **MLP))
    together = json.loads((pair[0] / "mlp" / "metrics.json").read_text())
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert together["step_losses"] == pytest.approx(alone["step_losses"], abs=1e-5)
    for name in ("train_loss", "test_loss"):
        assert together["history"][name] == pytest.approx(alone["history"][name], abs=1e-5)
    for name in ("train_accuracy", "test_accuracy"):
        assert together["history"][name] == pytest.approx(alone["history"][name], abs=0.005)
    weights = [load_checkpoint(folder / "checkpoint.pt")["model"] for folder in (tmp_path, pair[0] / "mlp")]
    for name, ours in weights[0].items():
        torch.testing.assert_close(weights[1][name], ours, rtol=1e-3, atol=1e-5)


def test_batch_normalisation_sees_the_whole_batch(pair, tmp_path, monkeypatch, threads):
    torch.set_num_threads(1)
    monkeypatch.setattr(registry, "_networks", dict(registry._networks))
    register_normalized()
    alone = train(TrainConfig(output=tmp_path, quiet=True, **NORMALIZED))
    together = json.loads((pair[0] / "normalized" / "metrics.json").read_text())
    assert together["step_losses"] == pytest.approx(alone["step_losses"], abs=1e-4)
    states = [load_checkpoint(folder / "checkpoint.pt") for folder in (tmp_path, pair[0] / "normalized")]
    for name, ours in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], ours, rtol=1e-3, atol=1e-4)


def test_one_process_speaks_and_writes(pair):
    root, said = pair
    assert said.count("epoch 1/2") == 4  # of three runs that reach it for the first time
    assert len(list((root / "mlp").glob("events*"))) == 1
    assert (root / "mlp" / "predictions.png").is_file()


def test_resume_is_bit_exact(pair):
    """With dropout: each process goes on with random numbers of its own."""
    states = [load_checkpoint(pair[0] / name / "checkpoint.pt") for name in ("straight", "halves")]
    assert all(torch.equal(states[0]["model"][key], value) for key, value in states[1]["model"].items())
    for name in ("step_losses", "history"):
        assert states[0]["progress"][name] == states[1]["progress"][name]
    ranks = states[0]["random"]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0]["torch"], ranks[1]["torch"])


def test_all_processes_see_the_divergence(pair):
    errors = [(pair[0] / f"error-{rank}").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "the loss became" in errors[0]


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 8])
def test_shares_cover_the_batch(samples):
    batch = torch.arange(samples) + 10
    shares = [Workers(rank, 3).share(batch) for rank in range(3)]
    assert all(len(part) > 0 for part, _ in shares)
    assert torch.equal(torch.cat([part for part, weight in shares if weight]), batch)
    assert sum(weight for _, weight in shares) == pytest.approx(1)
    assert ALONE.share(batch)[1] == 1


def test_the_module_is_a_program(tmp_path, monkeypatch):
    arguments = ["train.py", "softmax_regression", "--max-steps", "2", "--quiet", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("pyops.models.train", run_name="__main__")
    assert stopped.value.code == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 2
