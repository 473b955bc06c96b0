"""The errors of :mod:`pyops.models`: one-line messages, fit to be printed as they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModelsError(Exception):
    """Base of the errors a user can cause; the message is one line."""


class NetworkError(ModelsError, ValueError):
    """No such network, or it does not fit the data."""


class DataError(ModelsError, ValueError):
    """No such data set, or its files are missing or damaged."""


class TrainError(ModelsError, RuntimeError):
    """Training cannot start, continue or be saved."""


def unknown_name(kind: str, name: str, names: Iterable[str]) -> str:
    """Message for an unknown ``name``: the nearest known ones first, then all of them."""
    known = sorted(names)
    nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(match) for match in nearest)}?" if nearest else ";"
    return f"unknown {kind} {name!r}{hint} available: {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type name when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
