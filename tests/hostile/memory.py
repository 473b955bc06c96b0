"""Arguments beside memory that must not be touched, and whether anything in them was changed."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_LIBC = ctypes.CDLL(None, use_errno=True)
_PAGE, _NO_ACCESS = mmap.PAGESIZE, 0


def has_memory(value: Any) -> bool:
    """Whether ``value`` is a tensor whose elements lie in memory of the CPU."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_nested or value.is_quantized or torch.nn.parameter.is_lazy(value))
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors with memory in ``value``, which may hold lists and dictionaries."""
    if has_memory(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def guarded(t: Tensor, *, at_end: bool) -> Tensor:
    """``t`` in memory between two pages that nobody may read or write: its last byte is before the second, or
    its first one after the first."""
    size = t.untyped_storage().nbytes()
    if not has_memory(t) or size == 0 or t.is_conj() or t.is_neg() or t.is_inference():
        return t
    pages = -(-size // _PAGE)
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start = _PAGE + (pages * _PAGE - size if at_end else 0)
    bytes_ = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)
    source = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
    bytes_.copy_(source)
    for page in (0, pages + 1):
        failed = _LIBC.mprotect(ctypes.c_void_p(address + page * _PAGE), _PAGE, _NO_ACCESS)
        assert not failed, "mprotect"
    moved = torch.empty(0, dtype=t.dtype).set_(
        bytes_.untyped_storage(), t.storage_offset(), t.shape, t.stride()
    )
    return moved.requires_grad_(t.requires_grad)


class Snapshot:
    """What the memory of ``tensors`` holds."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._kept = []
        for t in tensors:
            raw = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
            self._kept.append((raw, raw.clone()))

    def changed(self, except_for: list[Tensor]) -> bool:
        """Whether any byte is another one, in memory that none of ``except_for`` has."""
        allowed = {t.untyped_storage().data_ptr() for t in except_for}
        return any(raw.data_ptr() not in allowed and not torch.equal(raw, kept) for raw, kept in self._kept)
