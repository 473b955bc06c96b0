"""Downloads of a data set's files, with retries and checksums; a file appears only when it is complete."""

from __future__ import annotations

import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, TrainError, first_line
from ..files import atomic_write

_ATTEMPTS, _TIMEOUT = 4, 30.0
_FIRST_PAUSE = 1.0  # seconds, doubled after every failure


def sha256_sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetch(urls: Sequence[str], path: Path, sha256: str) -> None:
    """Download one of ``urls``, which all lead to the same file, to ``path``.

    Each is tried in turn, several times over, with growing pauses. ``path`` appears once its content is
    complete and has the SHA-256 sum ``sha256``.

    Raises:
        DataError: no attempt succeeded, or the file cannot be written.
    """
    print(f"downloading {path.name} ...", file=sys.stderr)
    fault = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        for url in urls:
            try:
                with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
                    content = answer.read()
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                fault = f"{url}: {first_line(error)}"
                continue
            found = sha256_sum(content)
            if found == sha256:
                _write(path, content)
                return
            fault = f"{url}: wrong checksum: SHA-256 {found}, expected {sha256}"
    raise DataError(f"{path.name} could not be downloaded in {_ATTEMPTS} attempts; the last: {fault}")


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except (OSError, TrainError) as error:
        raise DataError(f"{path} cannot be written: {first_line(error)}") from None
