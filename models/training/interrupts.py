"""Interrupts that wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt(*, patient: bool) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag, so that neither interrupts a step. A second one acts at once,
    unless ``patient``: torchrun passes on to its processes a signal that the terminal has sent them already.

    Yields a function that tells whether one came. Only the main thread receives signals.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def remember(*_: object) -> None:
        came.set()
        if not patient:
            restore()

    for number in previous:
        signal.signal(number, remember)
    try:
        yield came.is_set
    finally:
        restore()
