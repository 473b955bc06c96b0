"""Indices beyond 2^31, reached by strides, with outputs that stay small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pyops
import pyops.functional as F

FAR = 2**31 + 5  # elements from the first of a row to the first of the next


def far(values: Tensor, dim: int = 0) -> Tensor:
    """The same values, whose ``dim`` has a stride of more than 2^31 elements in memory that is never touched
    between them: the system gives pages to what is written only."""
    rest = values.numel() // values.shape[dim]
    nbytes = (FAR * (values.shape[dim] - 1) + rest) * values.element_size()
    memory = torch.empty(0, dtype=values.dtype)
    try:
        memory.set_(torch.UntypedStorage(nbytes))
    except RuntimeError:
        pytest.skip(f"the system gives no {nbytes >> 30} GiB of address space")
    first = values.movedim(dim, 0)
    inner = first[0].contiguous().stride()
    view = memory.as_strided(first.shape, (FAR, *inner)).movedim(0, dim)
    return view.copy_(values)


X, IMAGES = torch.randn(2, 40), torch.randn(2, 3, 9, 8)
CLASSES = torch.tensor([3, 39])
W, FILTERS = torch.randn(7, 40), torch.randn(5, 3, 3, 3)
CALLS: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
    **{
        name: (X, lambda x, name=name: getattr(F, name)(x))
        for name in (
            *("relu", "leaky_relu", "elu", "selu", "sigmoid", "tanh", "silu", "gelu", "softplus"),
            *("hardswish", "relu6", "hardtanh", "hardsigmoid"),
        )
    },
    **{
        name: (X, lambda x, name=name: getattr(F, name)(x, X.flip(0)))
        for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss")
    },
    "binary_cross_entropy_with_logits": (X, lambda x: F.binary_cross_entropy_with_logits(x, X.sigmoid())),
    "softmax": (X, lambda x: F.softmax(x, 1)),
    "softmax over the far dimension": (X, lambda x: F.softmax(x, 0)),
    "log_softmax": (X, lambda x: F.log_softmax(x, 1)),
    "cross_entropy": (X, lambda x: F.cross_entropy(x, CLASSES)),
    "nll_loss": (X, lambda x: F.nll_loss(x, CLASSES)),
    "linear": (X, lambda x: F.linear(x, W)),
    "linear, far weight": (X, lambda w: F.linear(W, w)),
    "linear_cross_entropy": (X, lambda x: F.linear_cross_entropy(x, W, CLASSES % 7)),
    "embedding": (X, lambda w: F.embedding(torch.tensor([1, 0, 1]), w)),
    "prelu": (X, lambda x: F.prelu(x, torch.full((40,), 0.1))),
    "dropout": (X, lambda x: F.dropout(x, 0.5, generator=torch.Generator().manual_seed(1))),
    "layer_norm": (X, lambda x: F.layer_norm(x, (40,))),
    "batch_norm, rows": (X, lambda x: F.batch_norm(x, None, None, training=True)),
    "conv2d": (IMAGES, lambda x: F.conv2d(x, FILTERS, padding=1)),
    "conv2d_max_pool2d": (IMAGES, lambda x: F.conv2d_max_pool2d(x, FILTERS, kernel_size=2)),
    "max_pool2d": (IMAGES, lambda x: F.max_pool2d(x, 3, 2, 1)),
    "avg_pool2d": (IMAGES, lambda x: F.avg_pool2d(x, 2)),
    "adaptive_avg_pool2d": (IMAGES, lambda x: F.adaptive_avg_pool2d(x, 2)),
    "interpolate": (IMAGES, lambda x: F.interpolate(x, scale_factor=2)),
    "batch_norm": (IMAGES, lambda x: F.batch_norm(x, None, None, training=True)),
    "group_norm": (IMAGES, lambda x: F.group_norm(x, 3)),
    "instance_norm": (IMAGES, lambda x: F.instance_norm(x)),
    **{
        name: (torch.randn(2, 3, 5), lambda x, layer=layer: layer(x)[0])
        for name, layer in (
            ("rnn", pyops.nn.RNN(5, 6)),
            ("gru", pyops.nn.GRU(5, 6)),
            ("lstm", pyops.nn.LSTM(5, 6)),
        )
    },
}


#: Rows far from each other, of images also planes: of 40 columns, no system has the address space.
PLACES = [(name, dim) for name, (values, _) in CALLS.items() for dim in range(1 if values.dim() == 2 else 2)]


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "dim"), PLACES)
def test_strides_beyond_31_bits(name: str, dim: int) -> None:
    """They give what the same values give where they lie together."""
    values, call = CALLS[name]
    with pyops.use_backend("cpp"):
        results = []
        for x in (values.clone(), far(values, dim)):
            x = x.detach().requires_grad_()
            y = call(x)
            results.append((y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y))))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
