"""Running Python in a fresh process, for what one process can see only once: imports, libraries, crashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_python(
    *arguments: str,
    environment: dict[str, str | None] | None = None,
    directory: Path = ROOT,
    timeout: float = 300,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run ``python *arguments``; None in ``environment`` removes a variable.

    Raises:
        AssertionError: it failed (or was killed by a signal, as in a crash) and ``check`` is set.
    """
    variables = dict(os.environ)
    for name, value in (environment or {}).items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    result = subprocess.run(
        [sys.executable, *arguments],
        env=variables,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result
