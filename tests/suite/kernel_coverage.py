"""Which of nvcc's kernels a run of the suite has launched in the PTX machine, told at its end.

A pytest plugin. With pytest-xdist each worker hands its part to the process that reports.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

_KEY = "ptx_kernels"
_launched: set[str] = set()
_known: set[str] = set()


def _own() -> tuple[list[str], list[str]]:
    """Kernels that this process has launched, and all; nothing where the backend was never loaded."""
    nvcc = sys.modules.get("tests.ptx_machine.nvcc")
    if nvcc is None or not nvcc.load.cache_info().currsize:
        return [], []
    launches = nvcc.launches()
    return [k.entry for k, times in launches.items() if times], [k.entry for k in launches]


def _add(launched: list[str], known: list[str]) -> None:
    _launched.update(launched)
    _known.update(known)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is None:
        _add(*_own())
    else:
        output[_KEY] = _own()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _add(*getattr(node, "workeroutput", {}).get(_KEY, ([], [])))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _known:
        return
    terminalreporter.write_line(f"{len(_launched)} of nvcc's {len(_known)} kernels ran in the PTX machine")
    if len(_launched) > 0.9 * len(_known):  # a whole run: what is left is worth knowing
        for name in sorted(_known - _launched):
            terminalreporter.write_line(f"  never: {name}")
