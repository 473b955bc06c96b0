"""IDX files, the format of MNIST (http://yann.lecun.com/exdb/mnist).

Big-endian int32 magic (0, 0, type 8 = uint8, number of dimensions), one int32 per dimension, then the
bytes in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch

from ..errors import DataError, first_line


def read_idx(path: str | Path, num_dims: int) -> torch.Tensor:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in ``.gz``: uint8, num_dims-d.

    Raises:
        DataError: the file cannot be read, is damaged, is no uint8 IDX file of ``num_dims``
            dimensions, holds nothing, or fewer or more bytes than its header says.
    """
    path = Path(path)
    content = _read_bytes(path)
    header_size = 4 + 4 * num_dims
    if len(content) < header_size:
        raise DataError(f"{path}: truncated: {len(content)} bytes, the header has {header_size}")
    magic, *shape = struct.unpack(f">{1 + num_dims}I", content[:header_size])
    expected_magic = 0x0800 + num_dims
    if magic != expected_magic:
        raise DataError(
            f"{path}: wrong magic number {magic}, expected {expected_magic} "
            f"(uint8 values in {num_dims} dimension{'s' if num_dims > 1 else ''})"
        )
    expected_size = header_size + math.prod(shape)
    if len(content) != expected_size:
        fault = "truncated" if len(content) < expected_size else "too long"
        raise DataError(
            f"{path}: {fault}: {len(content)} bytes, its header (shape {shape}) asks for {expected_size}"
        )
    if len(content) == header_size:
        raise DataError(f"{path}: holds no values, shape {shape}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header_size).view(shape)


def _read_bytes(path: Path) -> bytearray:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return bytearray(file.read())
        return bytearray(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file: {first_line(error)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
