"""Busy processes beside a measurement: what a shared machine does to kernels that wait for their threads."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType

#: Ends by itself when its parent is gone, however that went; Ctrl-C is the parent's to tell of.
_PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""


class Neighbours:
    """``count`` processes that compute all the time, from ``with`` to its end, or to that of this process."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Neighbours:
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid())]
        try:
            for _ in range(self._count):
                self.processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                    )
                )
            for process in self.processes:
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise RuntimeError("bench: a busy neighbour ended at its start")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
