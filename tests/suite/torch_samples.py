"""The samples with which PyTorch tests its own functions: the standard of parity with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .backends import Backend


def op_infos(name: str) -> list[Any]:
    """What PyTorch's tests know of the function ``name``: an entry for each of its variants."""
    pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
    from torch.testing._internal.common_methods_invocations import op_db

    found = [info for info in op_db if info.name in (name, f"nn.functional.{name}")]
    assert found, f"PyTorch has no samples of {name}"
    return found


def check_torchs_samples(
    name: str,
    function: Callable[..., Any],
    backend: Backend,
    dtype: torch.dtype,
    *,
    infos: list[Any] | None = None,
    every: int = 1,
    equal_nan: bool = False,
) -> None:
    """Outputs and gradients of ``function`` equal those of ``torch.nn.functional.<name>``.

    ``infos`` are the variants to take, all by default; a slow backend takes ``every`` so many-th sample.
    """
    torchs = getattr(torch.nn.functional, name)
    for info in infos or op_infos(name):
        samples = list(info.sample_inputs(backend.device, dtype, requires_grad=True))
        assert samples
        for sample in samples if backend.thorough else samples[::every]:
            arguments = (sample.input, *sample.args)
            found, wanted = (f(*arguments, **sample.kwargs) for f in (function, torchs))
            torch.testing.assert_close(found, wanted, equal_nan=equal_nan)
            found, wanted = (y[0] if isinstance(y, tuple) else y for y in (found, wanted))
            leaves = [t for t in arguments if isinstance(t, Tensor) and t.requires_grad]
            upstream = torch.randn_like(wanted)
            gradients = [torch.autograd.grad(y, leaves, upstream) for y in (found, wanted)]
            torch.testing.assert_close(*gradients)
