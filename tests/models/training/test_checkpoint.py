"""Checkpoints: what they hold, damaged and foreign ones, and that no crash loses the last good one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyops.models.errors import TrainError
from pyops.models.files import atomic_write
from pyops.models.training.checkpoint import (
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)

from tests.suite.processes import ROOT
from tests.suite.training import folder_content, run

pytestmark = pytest.mark.usefixtures("without_pictures")


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


# ---- damaged, foreign, hostile


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory) -> Path:
    """Output folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("one")
    run(folder, epochs=1)
    return folder


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
def test_damaged_checkpoint(tmp_path, one_epoch, damage):
    content = folder_content(one_epoch)
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
from pyops.models.training.checkpoint import save_checkpoint

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
