"""What the processes of a GPU run have in common: items one after another, and a line of JSON for each.

Lines go to the stdout that the process was given; all else that is printed goes to stderr, into the log. They
are ``{"items": 12}``, then for each item ``{"begin": "name"}`` and ``{"end": "name", "outcome": "passed"}``.
With ``--wait`` there is ``{"waits": true}`` after what may run beside others; a line on stdin lets it go on.

An item that leaves the GPU unusable ends the process; another one is started with ``--after`` that item.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import IO, Any, Protocol

Item = Callable[[], dict[str, Any] | None]

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"
#: Exit code of a process that should not go on, as after an illegal address, and has told its item.
BROKEN = 70
_LONGEST = 4000


class Device(Protocol):
    #: Whether the process should be replaced, although the item is as it should be.
    spent: bool

    def broken(self) -> str | None: ...


class Lines:
    """Where the lines go."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def tell(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all programs have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--device", default="cuda", choices=("cuda", "dry-run"))
    made.add_argument("--after", metavar="ITEM", help="begin behind this item")
    made.add_argument("--again", action="store_true", help="a process before did not come to its end")
    made.add_argument("--wait", action="store_true", help="wait for a line on stdin before the first item")
    return made


def remaining(names: Iterable[str], after: str | None) -> list[str]:
    """The names behind ``after``."""
    names = list(names)
    return names if after is None else names[names.index(after) + 1 :]


def work(
    items: dict[str, Item],
    device: Device,
    given: argparse.Namespace,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Run ``items``; returns the exit code. ``prepare`` is called before waiting for the turn."""
    lines = Lines()
    todo = remaining(items, given.after)
    lines.tell(items=len(todo))
    if given.wait:
        if prepare is not None:
            prepare()
        lines.tell(waits=True)
        sys.stdin.readline()
    for name in todo:
        lines.tell(begin=name)
        finish(lines, name, attempt(items[name]), device)
    return 0


def attempt(item: Item) -> dict[str, Any]:
    """Outcome, seconds and what ``item`` tells."""
    start = time.perf_counter()
    try:
        row = {"outcome": PASSED, **(item() or {})}
    except Exception as error:  # whatever it is, the others go on
        row = {"outcome": FAILED, "message": f"{type(error).__name__}: {error}"[:_LONGEST]}
    return {"seconds": round(time.perf_counter() - start, 4), **row}


def finish(lines: Lines, name: str, row: dict[str, Any], device: Device) -> None:
    """Tell the row of an item. Does not return where the device cannot go on."""
    reason = device.broken()
    if reason is not None:
        row = {**row, "outcome": FAILED, "broken": reason, "message": row.get("message") or reason}
    lines.tell(end=name, **row)
    if reason is not None or device.spent:
        sys.stderr.flush()
        os._exit(BROKEN)  # at once: what cleans up would ask the device
