"""pyops.info(): what is installed, built, loaded and missing, in JSON types."""

from __future__ import annotations

import json

import torch

import pyops


def test_info_is_json() -> None:
    info = pyops.info()
    assert json.loads(json.dumps(info)) == info


def test_info_names_versions_and_what_is_loaded() -> None:
    info = pyops.info()
    assert info["pyops"] == pyops.__version__
    assert info["torch"] == torch.__version__
    assert info["loaded"]["cpp"] == f"libpyops_cpu_{pyops._library.cpu_variant()}.so"
    assert info["threads"] == torch.get_num_threads()


def test_info_tells_how_it_was_built() -> None:
    build = pyops.info()["build"]
    assert "missing" not in build, build
    assert "baseline" in build["cpu"]
    assert build["torch"]
    assert build["compiler"]


def test_info_gives_each_backend_or_why_it_is_missing() -> None:
    backends = pyops.info()["backends"]
    assert set(backends["cpu"]) == set(pyops.backends.BACKENDS)
    assert backends["cpu"]["cpp"] == "available"
    assert backends["cpu"]["cuda"] == "it serves cuda tensors"
    available = [name for name, reason in backends["cpu"].items() if reason == "available"]
    assert set(available) == set(pyops.available_backends("cpu")) & set(pyops.backends.BACKENDS)
