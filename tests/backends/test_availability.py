"""What keeps a backend from running is found out before its first call, said once, and the next one serves.

There need not be a GPU: what torch and Triton say of GPUs is made up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pyops
from pyops import _availability, _library, backends
from tests.suite.processes import run_python

MakeGpus = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeGpus]:
    """Makes GPUs of the given compute capabilities, with a process that has asked for nothing yet."""
    monkeypatch.setattr(backends, "_missing", {})
    monkeypatch.setattr(backends, "_warnings", set())
    monkeypatch.setattr(backends, "_bound", SimpleNamespace(cpp=backends._bound.cpp))
    backends._choose_once.cache_clear()

    def make(*capabilities: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")

    yield make
    backends._choose_once.cache_clear()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A CUDA library of the given architectures that loads, or the ``error`` why it does not."""

    def make(*archs: str, ptx: tuple[str, ...] = (), error: str | None = None) -> None:
        (tmp_path / "libpyops_cuda.so").touch()
        monkeypatch.setattr(_library, "LIBRARY_DIR", tmp_path)
        monkeypatch.setattr(
            _library, "loaded", {"cpp": "a", **({} if error else {"cuda": "libpyops_cuda.so"})}
        )
        monkeypatch.setattr(_library, "load_errors", {"cuda": error} if error else {})
        monkeypatch.setattr(_availability, "build_facts", lambda: {"cuda_archs": archs, "cuda_ptx": ptx})

    return make


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Triton that serves GPUs, or the reason why not."""
    return lambda reason: monkeypatch.setattr(_availability, "triton_reason", lambda device_type: reason)


def chosen(device: str, requested: str | None = None) -> tuple[str, list[str]]:
    """The backend that serves ``device``, and the warnings on the way."""
    where = torch.device(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        name = backends._choose(requested, where.type, where.index)
    return name, [str(warning.message) for warning in caught]


# ----------------------------------------------------------------------------------- the CUDA library's code


@pytest.mark.parametrize(
    ("archs", "ptx", "capability", "runs"),
    [
        (["8.0"], [], (8, 0), True),
        (["8.0"], [], (8, 9), True),
        (["8.6"], [], (8, 0), False),
        (["8.0"], [], (9, 0), False),
        (["8.0+PTX"], ["8.0"], (9, 0), True),
        (["8.0+PTX"], ["8.0"], (7, 5), False),
        (["9.0a"], [], (9, 0), True),
        (["10.0a"], [], (10, 3), False),
        (["10.0f"], [], (10, 3), True),
        (["8.0", "12.0+PTX"], ["10.0"], (11, 0), True),
        (["8.0", "12.0+PTX"], ["10.0"], (9, 0), False),
    ],
)
def test_which_gpus_the_librarys_code_runs_on(
    archs: list[str], ptx: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert _availability._has_code({"cuda_archs": archs, "cuda_ptx": ptx}, capability) == runs


def test_without_a_gpu_calls_for_one_can_be_traced(gpus: MakeGpus, library: Callable[..., None]) -> None:
    gpus()
    library("9.0")
    assert chosen("cuda:0") == ("cuda", [])


def test_a_gpu_without_code_in_the_library_gets_the_next_backend(
    gpus: MakeGpus, library: Callable[..., None], triton: Callable[[str | None], None]
) -> None:
    """Each GPU by itself."""
    gpus((8, 0), (7, 5))
    library("8.0", "9.0")
    triton(None)
    assert chosen("cuda:0") == ("cuda", [])
    name, said = chosen("cuda:1")
    assert name == "triton"
    assert len(said) == 1
    assert "no code for GPU 1, a GPU of compute capability 7.5: it was built for 8.0, 9.0" in said[0]
    assert "TORCH_CUDA_ARCH_LIST=7.5" in said[0]
    with pytest.raises(
        pyops.backends.BackendError, match=r"'cuda' cannot run on .*'cuda:1': .*no code for GPU 1"
    ):
        chosen("cuda:1", "cuda")
    told = pyops.info()["backends"]
    assert told["cuda:0"]["cuda"] == "available"
    assert "no code for GPU 1" in told["cuda:1"]["cuda"]


def test_several_gpus_of_a_kind_are_warned_of_once(
    gpus: MakeGpus, library: Callable[..., None], triton: Callable[[str | None], None]
) -> None:
    gpus((8, 0), (8, 0))
    library(error="it could not be loaded: no such file")
    triton(None)
    assert [len(chosen(f"cuda:{i}")[1]) for i in (0, 1, 0)] == [1, 0, 0]


def test_no_silent_reference(
    gpus: MakeGpus, library: Callable[..., None], triton: Callable[[str | None], None]
) -> None:
    gpus((8, 0))
    library(error="it could not be loaded")
    triton("it has no C compiler")
    name, said = chosen("cuda:0")
    assert name == "reference"
    assert len(said) == 1
    assert "plain torch ops" in said[0]
    assert "(cuda: it could not be loaded; triton: it has no C compiler)" in said[0]
    assert chosen("cuda:0") == ("reference", [])
    assert chosen("cuda:0", "reference") == ("reference", [])


def test_triton_where_the_library_was_never_built_is_worth_no_warning(
    gpus: MakeGpus, library: Callable[..., None], triton: Callable[[str | None], None], tmp_path: Path
) -> None:
    gpus((9, 0))
    library(error="it was not built")
    (tmp_path / "libpyops_cuda.so").unlink()
    triton(None)
    assert chosen("cuda:0") == ("triton", [])


def test_triton_alone_serves_every_op() -> None:
    """Where nothing was built by nvcc, no op falls back to torch's formulas."""
    pytest.importorskip("triton")
    script = """
import pyops
pyops.set_backend("triton")
handles = pyops.backends._bound.triton
names = set(vars(handles)) - {"backend", "without_kernel"}
assert len(names) > 40, names
print(sorted(handles.without_kernel))
"""
    found = run_python("-c", script, environment={"PYOPS_BACKEND": None, "TRITON_INTERPRET": "1"})
    assert found.stdout.strip() == "[]"


def test_a_request_that_no_device_can_fulfil_raises_with_every_reason(
    gpus: MakeGpus, library: Callable[..., None], triton: Callable[[str | None], None]
) -> None:
    gpus((8, 0), (7, 0))
    library("9.0")
    triton("it has no C compiler")
    for name, reason in (
        ("triton", "on cuda:0: it has no C compiler"),
        ("cuda", "on cuda:1: .*no code for GPU 1"),
    ):
        with pytest.raises(pyops.backends.BackendError, match=reason):
            pyops.set_backend(name)


# ------------------------------------------------------------------------------------------------- Triton


@pytest.mark.parametrize("error", ["ImportError", "AttributeError", "RuntimeError", "OSError"])
def test_triton_that_cannot_be_imported_is_a_reason_whatever_it_raises(error: str, tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(f"raise {error}('half of it is missing')\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import pyops\n"
        "print(pyops.info()['backends']['cpu']['triton'])\n"
        "try: pyops.set_backend('triton')\n"
        "except pyops.backends.BackendError as error: print(error)\n"
    )
    said = run_python("-c", script, environment={"TRITON_INTERPRET": "1"}).stdout.splitlines()
    assert said[0] == f"Triton cannot be imported: {error}: half of it is missing"
    assert said[0] in said[1]


def test_triton_without_a_c_compiler_is_not_chosen(
    gpus: MakeGpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton's own driver for GPUs compiles itself in C, and in older versions a launcher per kernel."""
    driver = pytest.importorskip("triton").runtime.driver
    gpus((9, 0))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path))
    for name in ("_default", "_active"):
        monkeypatch.setattr(driver, name, None)
    assert "does not start: RuntimeError: Failed to find C compiler" in str(_availability._driver_reason())
    monkeypatch.setattr(driver, "_active", SimpleNamespace(utils=SimpleNamespace()))
    assert _availability._driver_reason() == "Triton needs a C compiler, and gcc or clang was not found"
    monkeypatch.setenv("CC", "not-a-compiler")
    assert "CC=not-a-compiler was not found" in str(_availability._driver_reason())
    monkeypatch.setattr(driver, "_active", SimpleNamespace(utils=SimpleNamespace(launch=print)))
    assert _availability._driver_reason() is None


def test_the_first_call_can_be_a_compiled_one_that_imports_triton() -> None:
    """As on a GPU without the CUDA library, where Triton is the default."""
    pytest.importorskip("triton")
    script = """
import sys, torch, pyops
pyops.backends._DEFAULTS["cpu"] = ("triton",)
del pyops.backends._bound.cpp
pyops.backends._cpp = None
assert "pyops.triton_kernels" not in sys.modules
f = torch.compile(pyops.functional.cross_entropy, fullgraph=True, backend="aot_eager")
f(torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])).backward()
assert "pyops.triton_kernels" in sys.modules
"""
    run_python("-c", script, environment={"PYOPS_BACKEND": None, "TRITON_INTERPRET": "1"})


def test_another_backend_can_be_bound_in_the_middle_of_a_compiled_graph() -> None:
    pytest.importorskip("triton")
    script = """
import torch, pyops
pyops.backends._DEFAULTS["meta"] = ("triton",)
pyops.backends._missing["triton", "meta", 0] = None
def f(x, y):
    return pyops.functional.softmax(x, 1), pyops.functional.softmax(y, 1)
x = torch.randn(40, 50)
shapes = torch.compile(f, fullgraph=True, backend="eager")(x, x.to("meta"))
assert shapes[1].shape == x.shape and pyops.backends._bound.triton
"""
    run_python("-c", script, environment={"PYOPS_BACKEND": None, "TRITON_INTERPRET": "1"})
