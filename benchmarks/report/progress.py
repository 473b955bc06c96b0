"""What is running now: a rich progress bar on a terminal, one line per finished item elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """``start(what)`` and ``done(outcome)`` once per item; ``total`` items."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._count = 0
        self._label = ""
        self._started = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import Progress as Bar
            except ImportError:
                return self
            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, what: str) -> None:
        self._count += 1
        self._label = what
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, description=what.replace("[", "\\["))

    def done(self, outcome: str) -> None:
        seconds = time.monotonic() - self._started
        line = f"[{self._count}/{self._total}] {self._label}: {outcome} ({seconds:.1f} s)"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
            self._bar.advance(self._task)
        else:
            print(line, file=sys.stderr, flush=True)
