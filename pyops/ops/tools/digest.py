"""Whether tensors are still what something was made of, by all of their bytes (``csrc/cpu/digest.cpp``).

Their versions do not tell: what is written through ``Tensor.data``, by numpy or by another process leaves
these as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from ... import _library

__all__ = ["digest_of"]

torch.library.define("pyops::digest", "(Tensor[] tensors) -> int")

_PLAIN = (Tensor, Parameter)


def digest_of(tensors: Sequence[Tensor]) -> int | None:
    """A number that changes with the tensors' values; None where one would have to wait for it: on a GPU."""
    if "cpp" not in _library.loaded or not all(type(t) in _PLAIN and t.is_cpu for t in tensors):
        return None
    digest: int = torch.ops.pyops.digest.default([_dense(t) for t in tensors])
    return digest


def _dense(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()
