"""Arguments as the world passes them: numbers of numpy, tensors that are complex, sparse, nested or empty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pyops
from pyops import functional as F

INT, FLOAT = np.int64, np.float32
X = torch.randn(2, 4, 48, 48)
W = torch.randn(6, 4, 3, 3)
COMPLEX = torch.randn(2, 4, 48, 48, dtype=torch.complex64)
COMPLEX_W = torch.randn(6, 4, 3, 3, dtype=torch.complex64)
INTEGERS = torch.randint(-3, 3, (2, 4, 48, 48))
ROWS = torch.randn(64, 64)
SPARSE = (ROWS * (ROWS > 1)).to_sparse()
CSR = (ROWS * (ROWS > 1)).to_sparse_csr()
PARTS = [torch.randn(30, 64), torch.randn(50, 64)]
NESTED = torch.nested.nested_tensor(PARTS)
JAGGED = torch.nested.nested_tensor(PARTS, layout=torch.jagged)

NUMBERS: dict[str, Callable[[Any], torch.Tensor]] = {
    "conv2d": lambda L: L.conv2d(X, W, None, INT(2), INT(1), INT(1), INT(1)),
    "conv1d": lambda L: L.conv1d(X.flatten(2), W[..., 0], None, INT(2), [INT(1)], INT(1), INT(1)),
    "conv2d, pairs": lambda L: L.conv2d(X, W, None, (2, 1), [INT(1), 1]),
    "conv2d, tensor": lambda L: L.conv2d(X, W, None, torch.tensor(2)),
    "max_pool2d": lambda L: L.max_pool2d(X, INT(2), INT(2), INT(1)),
    "max_pool2d, pair": lambda L: L.max_pool2d(X, (INT(2), INT(3)), np.int32(1)),
    "avg_pool2d": lambda L: L.avg_pool2d(X, INT(2), INT(2), INT(1), divisor_override=INT(3)),
    "adaptive_avg_pool2d": lambda L: L.adaptive_avg_pool2d(X, (INT(3), None)),
    "interpolate": lambda L: L.interpolate(X, (INT(5), INT(7))),
    "interpolate, scale": lambda L: L.interpolate(X, scale_factor=(FLOAT(1.5), INT(2))),
    "batch_norm": lambda L: L.batch_norm(
        X, torch.zeros(4), torch.ones(4), training=True, momentum=FLOAT(0.25), eps=FLOAT(1e-3)
    ),
    "leaky_relu": lambda L: L.leaky_relu(X, FLOAT(0.25)),
    "softmax": lambda L: L.softmax(X, INT(1)),
    "huber_loss": lambda L: L.huber_loss(X, X * 2, delta=FLOAT(0.5)),
}
KINDS: dict[str, Callable[[Any], torch.Tensor]] = {
    "conv2d, complex": lambda L: L.conv2d(COMPLEX, COMPLEX_W, padding=1),
    "conv1d, complex": lambda L: L.conv1d(COMPLEX.flatten(2), COMPLEX_W[..., 0]),
    "conv2d, integers": lambda L: L.conv2d(INTEGERS, INTEGERS[:1, :, :3, :3]),
    "silu, complex": lambda L: L.silu(COMPLEX),
    "linear, sparse input": lambda L: L.linear(SPARSE, ROWS),
    "linear, sparse weight": lambda L: L.linear(ROWS, SPARSE),
    "linear, csr weight": lambda L: L.linear(ROWS, CSR),
    "linear, nested": lambda L: L.linear(NESTED, ROWS),
    "linear, jagged": lambda L: L.linear(JAGGED, ROWS),
    "softmax, nested": lambda L: L.softmax(NESTED, -1),
    "dropout, nested": lambda L: L.dropout(NESTED, 1.0),
    "dropout, jagged": lambda L: L.dropout(JAGGED, 1.0),
    "tanh, csr": lambda L: L.tanh(CSR),
    "relu, sparse": lambda L: L.relu(SPARSE),
    **{
        f"{name}, {kind}": lambda L, name=name, x=x: getattr(L, name)(x)
        for name in ("gelu", "tanh", "relu")
        for kind, x in (("nested", NESTED), ("jagged", JAGGED))
    },
    "batch_norm, (0,)": lambda L: L.batch_norm(torch.empty(0), None, None, training=True),
}


def dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_nested:
        return torch.cat([part.reshape(-1) for part in tensor.unbind()])
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


@pytest.mark.parametrize("call", NUMBERS)
def test_numbers_of_numpy(call: str) -> None:
    with pyops.use_backend("cpp"):
        found = NUMBERS[call](F)
    torch.testing.assert_close(found, NUMBERS[call](torch.nn.functional))


@pytest.mark.parametrize("call", KINDS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
def test_tensors_without_kernels_are_torchs(call: str) -> None:
    found, wanted = KINDS[call](F), KINDS[call](torch.nn.functional)
    assert found.layout is wanted.layout
    torch.testing.assert_close(dense(found), dense(wanted))


@pytest.mark.parametrize("value", [1.5, "2", None, (1, 2.5), (1, 2, 3), torch.tensor(1.5)])
def test_what_is_no_integer_is_refused(value: object) -> None:
    for call in (lambda: F.conv2d(X, W, stride=value), lambda: F.avg_pool2d(X, 2, padding=value)):
        with pyops.use_backend("cpp"), pytest.raises((TypeError, ValueError)):
            call()
