"""What type checkers are told of the public names: `make lint` checks it, and nothing runs it."""

from collections.abc import Callable
from typing import Any, assert_type

import torch
from torch import Tensor

import pyops
import pyops.functional as F
import pyops.nn.functional as same
from pyops import nn
from pyops.nn.utils import clip_grad_norm_

x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


def flagged(flag: bool) -> None:
    """What is returned depends on a flag."""
    assert_type(F.cross_entropy(x, target), Tensor)
    assert_type(F.cross_entropy(x, target, return_lse=True, z_loss=1e-4), tuple[Tensor, Tensor])
    assert_type(F.cross_entropy(x, target, return_lse=flag), Tensor | tuple[Tensor, Tensor])
    assert_type(F.max_pool2d(x, 2), Tensor)
    assert_type(F.max_pool2d(x, 2, return_indices=True), tuple[Tensor, Tensor])


def functions() -> None:
    """Ours know their extras; where there is none of ours, it is torch's."""
    assert_type(F.linear(x, x, activation="relu"), Tensor)
    assert_type(same.relu(x), Tensor)
    assert_type(nn.functional.softmax(x, dim=1), Tensor)
    assert_type(F.pad(x, (1, 1)), Tensor)


def modules() -> None:
    assert_type(nn.Linear(3, 4).weight, Tensor)
    assert_type(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), nn.Sequential)
    assert_type(nn.Parameter(x), torch.nn.Parameter)
    assert_type(nn.init.zeros_(x), Tensor)
    assert_type(clip_grad_norm_([x], 1.0), Tensor)
    assert_type(pyops.convert(nn.Conv2d(1, 2, 3)), nn.Conv2d)
    assert_type(pyops.info(), dict[str, Any])
    made: Callable[[int, int], torch.nn.Module] = nn.Linear
    made(3, 4)


def mistakes() -> None:
    """An ignored error that is none is an error of its own (`warn_unused_ignores`)."""
    F.no_such_function(x)  # type: ignore[attr-defined]
    nn.NoSuchLayer()  # type: ignore[attr-defined]
    F.relu(x, slope=1)  # type: ignore[call-arg]
