"""The functions of a shared library by name and source: a reader of 64-bit ELF symbol tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SYMBOL_TABLE = 2  # SHT_SYMTAB
_FUNCTION, _FILE = 2, 4  # STT_FUNC, STT_FILE
_UNDEFINED = 0  # SHN_UNDEF


@dataclass(frozen=True)
class Function:
    """``source`` is the name of the file that the compiler was given; the linker keeps it for local symbols,
    which come after it in the table."""

    source: str
    name: str
    offset: int


def functions(path: Path) -> Iterator[Function]:
    """The functions that are defined in the library at ``path``, local ones included.

    Raises:
        ValueError: it is no such library, or it was stripped of its symbols.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    (sections_at,) = struct.unpack_from("<Q", data, 0x28)
    entry_bytes, count = struct.unpack_from("<HH", data, 0x3A)
    # Of each section: name, type, flags, address, offset, size, link, info, alignment, bytes of an entry.
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + i * entry_bytes) for i in range(count)]
    table = next((s for s in sections if s[1] == _SYMBOL_TABLE), None)
    if table is None:
        raise ValueError(f"{path} has no symbol table")
    names = sections[table[6]][4]
    source = ""
    for name_at, info, _, section, value, _ in struct.iter_unpack(
        "<IBBHQQ", data[table[4] : table[4] + table[5]]
    ):
        kind = info & 0xF
        if kind not in (_FUNCTION, _FILE):
            continue
        start = names + name_at
        name = data[start : data.index(b"\0", start)].decode()
        if kind == _FILE:
            source = name
        elif section != _UNDEFINED:
            yield Function(source, name, value)
