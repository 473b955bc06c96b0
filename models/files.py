"""Writing files so that a crash at any moment leaves either the old file or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import TrainError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends, and never a moment earlier.

    The bytes go to a hidden file in the same folder (a rename is atomic only within a file system),
    are flushed to the disk, and are then renamed over ``path``. If anything raises, ``path`` is
    untouched. The hidden name is fixed, so that what a killed process left is reused.

    Raises:
        TrainError: the file cannot be written (folder gone, disk full, ...).
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise TrainError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Where folders cannot be opened (Windows) the system sees to it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def prepare_folder(folder: Path) -> None:
    """Create ``folder`` if need be and make sure that files can be created in it.

    Raises:
        TrainError: it cannot be created or written.
    """
    probe = folder / ".writable.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise TrainError(
            f"output folder {str(folder)!r} cannot be written: {error.strerror or error}"
        ) from None
