"""Each example runs, for a few steps."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.suite.processes import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python puts the folder of a script on its path; and a figure is shown nowhere."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("MPLBACKEND", "agg")
    yield
    sys.modules.pop("digits", None)


def main(name: str):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_every_example_is_in_the_list_and_run_here():
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} - {"digits.py"}
    text = (EXAMPLES / "README.md").read_text()
    here = Path(__file__).read_text()
    assert not [name for name in files if f"]({name})" not in text or name not in here]


def test_train_loop(capsys: pytest.CaptureFixture[str]):
    assert main("train_loop.py")(["--steps", "40"]) < 2
    assert "at the end" in capsys.readouterr().out


def test_fine_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    example = runpy.run_path(str(EXAMPLES / "fine_tune.py"))
    weights = tmp_path / "weights.pt"
    torch.save(example["pretrained"](None).state_dict(), weights)
    loss = example["main"](["--steps", "25", "--weights", str(weights)])
    assert loss < 2.25  # by chance it is 2.3
    assert "fused" in capsys.readouterr().out


def test_lightning_style():
    assert main("lightning_style.py")(["--steps", "40"]) > 0.5


def test_notebook():
    """Its cells as one program, with fewer steps."""
    cells = json.loads((EXAMPLES / "softmax_regression.ipynb").read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs")]  # what it prints is yours
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("STEPS = 400", "STEPS = 60")
            exec(compile(source, "softmax_regression.ipynb", "exec"), names)
    assert names["losses"][-1] < 1.2


_PROCESS = """
import runpy, sys
import torch, torch.distributed as dist
from tests.suite.processes import end_process_of_group
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
sys.path.insert(0, "examples")
torch.save(runpy.run_path("examples/ddp.py")["main"](["--steps", "3"]), f"{folder}/{rank}.pt")
end_process_of_group()
"""


def test_ddp(tmp_path: Path):
    """Two processes, which meet in a file, end with the same parameters."""
    command = [sys.executable, "-c", _PROCESS]
    pair = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT) for rank in range(2)]
    try:
        assert [process.wait(timeout=600) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
