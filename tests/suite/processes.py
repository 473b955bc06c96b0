"""Running Python in a fresh process, for what one process can see only once: imports, libraries, crashes.

And what the processes of pytest-xdist do once for all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch.distributed

ROOT = Path(__file__).resolve().parents[2]


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that the workers of one run have in common."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait for every other process that is inside with the same file ``lock``."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def end_process_of_group() -> NoReturn:
    """End a process of torch's group when all of them are here: what failed before has already raised.

    At once, without the interpreter's end: in rare runs a thread of gloo outlives its group there and takes
    the process down ("terminate called without an active exception") after all the work was done.
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def start_group(module: str, role: str, size: int, folder: Path) -> list[subprocess.Popen[str]]:
    """``size`` processes of a test's ``module`` in the ``role``, which meet in the folder."""
    command = [sys.executable, "-m", module, role]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def run_python(
    *arguments: str,
    environment: dict[str, str | None] | None = None,
    directory: Path = ROOT,
    timeout: float = 1800,  # for one that hangs, not for one on a busy machine
    check: bool = True,
    input: str | None = None,
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
        input=input,
    )
    if check:
        assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result
