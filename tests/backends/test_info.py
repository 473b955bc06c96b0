"""pyops.info(): what is installed, built, loaded and missing, in JSON types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pyops
from pyops import _library
from tests.suite.processes import run_python


def test_info_is_json() -> None:
    info = pyops.info()
    assert json.loads(json.dumps(info)) == info


def test_info_names_versions_and_what_is_loaded() -> None:
    info = pyops.info()
    assert info["pyops"] == pyops.__version__
    assert info["torch"] == torch.__version__
    assert info["loaded"]["cpp"] in [f"libpyops_cpu_{name}.so" for name in info["build"]["cpu"]]
    assert info["threads"] == torch.get_num_threads()


def test_info_says_why_a_library_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel with the CUDA library said nothing of it where torch has no CUDA: no device asks for it."""
    if torch.version.cuda is None:
        assert "was built without CUDA" in pyops.info()["not_loaded"]["cuda"]
    monkeypatch.setitem(_library.load_errors, "cuda", "the reason")
    assert pyops.info()["not_loaded"]["cuda"] == "the reason"


def test_info_tells_how_it_was_built() -> None:
    build = pyops.info()["build"]
    assert "missing" not in build, build
    assert build["cpu"]
    assert set(build["cpu"]) <= set(_library.CPU_VARIANTS)
    assert build["torch"]
    assert build["compiler"]


def test_info_names_the_algorithms_of_the_convolution() -> None:
    names = pyops.info()["conv2d_algorithms"]
    assert list(names) == ["forward", "input_gradient", "weight_gradient"]
    assert all(of_direction[-1] == "direct" for of_direction in names.values())


def features(wanted: str | None) -> list[str]:
    script = "import json, pyops; print(json.dumps(pyops.info()['cpu_features']))"
    return json.loads(run_python("-c", script, environment={"PYOPS_CPU_FEATURES": wanted}).stdout)


def test_cpu_features_can_be_masked() -> None:
    here = features(None)
    assert set(here) < set(_library.CPU_FEATURES)
    assert "amx_twin" not in here
    assert features("none") == []
    everything = features(",".join(_library.CPU_FEATURES))
    assert set(here) <= set(everything)
    assert ("amx_twin" in everything) == (_library.loaded["cpp"] == "libpyops_cpu_avx512.so")


def test_an_unknown_cpu_feature_is_refused_by_name() -> None:
    script = "import pyops; pyops.info()"
    done = run_python("-c", script, environment={"PYOPS_CPU_FEATURES": "amx_bf16,sse9"}, check=False)
    assert done.returncode == 1
    assert "PYOPS_CPU_FEATURES must name" in done.stderr
    assert "avx512_bf16" in done.stderr
    assert "got 'sse9' in 'amx_bf16,sse9'" in done.stderr


def test_info_gives_each_backend_or_why_it_is_missing() -> None:
    backends = pyops.info()["backends"]
    assert set(backends["cpu"]) == set(pyops.backends.BACKENDS)
    assert backends["cpu"]["cpp"] == "available"
    assert backends["cpu"]["cuda"] == "it serves cuda tensors"
    available = [name for name, reason in backends["cpu"].items() if reason == "available"]
    assert set(available) == set(pyops.available_backends("cpu")) & set(pyops.backends.BACKENDS)


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ("AVX512", ["baseline", "avx2", "avx512"], "avx512"),
        ("AVX512_BF16", ["avx512"], "avx512"),
        ("AVX512", ["baseline", "avx2"], "avx2"),
        ("AVX2", ["baseline", "avx2", "avx512"], "avx2"),
        ("DEFAULT", ["baseline", "avx512"], "baseline"),
        ("AVX2", ["avx512"], "was built for avx512 only, and baseline or avx2 is needed"),
        ("AVX2", [], "libpyops_cpu_avx2.so was not built"),
    ],
)
def test_most_demanding_variant_that_may_run_is_loaded(
    capability: str, built: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in built:
        (tmp_path / f"libpyops_cpu_{name}.so").touch()
    monkeypatch.setattr(_library, "LIBRARY_DIR", tmp_path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    for table in ("load_errors", "loaded"):
        monkeypatch.setattr(_library, table, {})
    _library._load_cpu()
    if expected in _library.CPU_VARIANTS:
        assert (_library.loaded, _library.load_errors) == ({"cpp": f"libpyops_cpu_{expected}.so"}, {})
    else:
        assert not _library.loaded
        assert expected in _library.load_errors["cpp"]
