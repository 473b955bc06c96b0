"""What the ``pyops`` command imports before it needs torch, and what it says without the extra `train`."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pyops import __main__ as command
from tests.suite.processes import ROOT, run_python

#: Writes down at the end which modules a process has imported.
_SCRIPT = """
import atexit, pathlib, sys
atexit.register(lambda: pathlib.Path(__file__).with_name("modules").write_text(" ".join(sys.modules)))
"""
_HEAVY = {"torch", "numpy", "scipy", "triton", *command.EXTRA} - {"typer", "rich"}


def imported(folder: Path, *arguments: str) -> tuple[str, set[str]]:
    """What ``python -m pyops ARGUMENTS`` prints on 80 columns, and the modules that it imports."""
    (folder / "sitecustomize.py").write_text(_SCRIPT)
    environment: dict[str, str | None] = {
        "PYTHONPATH": f"{folder}:{ROOT}", "COLUMNS": "80", "PYOPS_BACKEND": None, "FORCE_COLOR": None,
    }  # fmt: skip
    result = run_python("-m", "pyops", *arguments, environment=environment, directory=folder)
    return result.stdout, set((folder / "modules").read_text().split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["list"], ["list", "--json"], ["train", "--help"], ["bench", "--help"]],
    ids=" ".join,
)
def test_what_needs_no_kernel_imported_torch(tmp_path: Path, arguments: list[str]) -> None:
    printed, modules = imported(tmp_path, *arguments)
    assert "pyops.cli" in modules
    assert not {name.partition(".")[0] for name in modules} & _HEAVY
    assert printed
    assert "--json" in arguments or max(map(len, printed.splitlines())) <= 80


def test_a_command_that_needs_kernels_has_them(tmp_path: Path) -> None:
    printed, modules = imported(tmp_path, "info")
    assert "libpyops_cpu_" in printed
    assert {"torch", "pyops.nn"} <= modules


def test_the_command_took_the_module_convert_for_the_function(tmp_path: Path) -> None:
    """Both are called ``pyops.convert``: importing the module hides the function that training calls."""
    imported(tmp_path, "train", "linear_regression", "--max-steps", "1", "--quiet", "--output", str(tmp_path))
    assert (tmp_path / "metrics.json").is_file()


def test_the_installed_script_starts_as_the_module_does(tmp_path: Path) -> None:
    """And a program of somebody's that is called the same imports all of pyops."""
    lines = "import sys\nfrom pyops.__main__ import main\nprint('torch' in sys.modules)\nmain()\n"
    for folder in ("bin", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pyops").write_text(lines)
    (tmp_path / "bin/python").symlink_to(sys.executable)
    for folder, has_torch in (("bin", False), ("elsewhere", True)):
        program = [tmp_path / "bin/python", tmp_path / folder / "pyops", "--version"]
        paths = ":".join([str(ROOT), *filter(None, sys.path)])
        result = subprocess.run(
            program, env={"PYTHONPATH": paths, "PATH": ""}, capture_output=True, text=True, check=True
        )
        assert result.stdout.split()[0] == str(has_torch)


def test_processes_that_the_command_starts_have_all_of_pyops(tmp_path: Path) -> None:
    """Python gives a spawned process a copy of ``sys.argv``, by which it looks like the command itself."""
    script = "import sys; sys.argv = ['-m', 'list']; import pyops; print(pyops.nn.__name__)"
    result = run_python("-c", script, directory=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert result.stdout == "pyops.nn\n"


# -------------------------------------------------------------------------------------------------- extras

#: Takes away what the extra `train` brings.
_WITHOUT_EXTRA = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
gone = {set(command.EXTRA)!r}
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in gone else find(name, *rest)
"""


def test_the_extra_is_what_the_command_line_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == ["torch>=2.11", "numpy"]
    names = {"PIL": "pillow", "sklearn": "scikit-learn"}
    brought = {text.partition(">")[0] for text in project["optional-dependencies"]["train"]}
    assert brought == {names.get(name, name) for name in command.EXTRA}


def test_kernels_need_torch_and_numpy_only(tmp_path: Path) -> None:
    """Every op runs in a process that has nothing else; a model is converted, reported on and trained."""
    script = f"""{_WITHOUT_EXTRA}
import torch, pyops
from tests.suite.smoke import BACKENDS, failures
failed = failures(next(b for b in BACKENDS if str(b) == "cpp"))
assert not failed, failed
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
model = pyops.convert(model, example_inputs=torch.randn(2, 4))
print(pyops.conversion_report(model))
model(torch.randn(2, 4)).sum().backward()
pyops.optim.SGD(model.parameters(), lr=0.1).step()
import json; json.dumps(pyops.info())
"""
    (tmp_path / "plain.py").write_text(script)
    run_python(str(tmp_path / "plain.py"), environment={"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": None})


@pytest.mark.parametrize("missing", ["typer", "matplotlib"])
def test_the_command_says_in_one_line_what_to_install(tmp_path: Path, missing: str) -> None:
    script = _WITHOUT_EXTRA.replace(repr(set(command.EXTRA)), repr({missing}))
    arguments = ["example", "himmelblau", "--output", str(tmp_path)]
    lines = f"{script}\nimport sys\nsys.argv[1:] = {arguments}\nfrom pyops.__main__ import main\nmain()"
    result = run_python("-c", lines, check=False)
    assert result.returncode == 2
    assert result.stderr == f"error: this needs {missing}: pip install 'pyops-kernels[train]'\n"
