"""What is installed, built and loaded: the facts behind ``pyops info``."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

import torch

from . import _availability, _library, backends
from ._version import __version__


def _triton_version() -> str | None:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _conv2d_algorithms() -> dict[str, list[str]]:
    from .ops.conv2d import algorithm_names

    return algorithm_names() if "cpp" in _library.loaded else {}


def info() -> dict[str, Any]:
    """Versions, what was built and loaded, and for each backend and device why it is missing.

    Returns:
        A dictionary that holds only JSON types.
    """
    gpus = _gpus()
    # One GPU is "cuda". Of several each is named: their kinds may differ.
    devices = ["cpu", *(["cuda"] if len(gpus) == 1 else [f"cuda:{i}" for i in range(len(gpus))])]
    return {
        "pyops": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "triton": _triton_version(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_features": _library.cpu_features(),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0") == "1",
        "gpus": gpus,
        "loaded": dict(_library.loaded),
        "not_loaded": dict(_library.load_errors),
        "backends": {
            device: {name: backends.missing_reason(name, device) or "available" for name in backends.BACKENDS}
            for device in devices
        },
        "conv2d_algorithms": _conv2d_algorithms(),
        "build": _availability.build_facts(),
    }
