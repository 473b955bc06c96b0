"""conv1d: what no other op has. The contract in ``suite/ops`` has the rest."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pyops
import pyops.functional as F
from pyops import _library
from pyops.ops.tools import packed
from tests.suite.backends import Backend

needs_cpp = pytest.mark.skipif(
    "cpp" not in _library.loaded, reason="the C++ kernels for the CPU are not built"
)


@needs_cpp
@pytest.mark.parametrize(("last", "kernels_last"), list(product([False, True], repeat=2)))
@pytest.mark.parametrize("shape", [(2, 5, 9), (2, 1, 9), (2, 5, 1), (1, 6, 30)])
def test_output_has_torchs_strides(shape: tuple[int, ...], last: bool, kernels_last: bool) -> None:
    """Rows with the channels last are copied, as are torch's, and kernels are not."""
    x, w = torch.randn(shape), torch.randn(4, shape[1], 3)
    x, w = (
        t.mT.contiguous().mT.requires_grad_() if there else t.requires_grad_()
        for t, there in ((x, last), (w, kernels_last))
    )
    with pyops.use_backend("cpp"):
        found, wanted = F.conv1d(x, w, padding=1), torch.conv1d(x, w, padding=1)
    assert found.stride() == wanted.stride()
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad(y, (x, w), upstream) for y in (found, wanted))
    for mine, torchs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-5)


@needs_cpp
def test_output_is_no_view_that_a_change_in_place_would_copy() -> None:
    x, w = torch.randn(2, 8, 301), torch.randn(8, 8, 3, requires_grad=True)
    y = F.conv1d(x, w)
    assert not y._is_view()
    found, wanted = (torch.autograd.grad(y.relu_().sum(), w)[0] for y in (y, torch.conv1d(x, w)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_empty_batch(backend: Backend, groups: int) -> None:
    x = torch.randn(0, 4, 6, device=backend.device, requires_grad=True)
    w = torch.randn(6, 4 // groups, 3, device=backend.device, requires_grad=True)
    y = F.conv1d(x, w, padding=1, groups=groups, activation="relu")
    assert y.shape == (0, 6, 6)
    dx, dw = torch.autograd.grad(y, (x, w), torch.ones_like(y))
    assert dx.shape == x.shape
    assert torch.equal(dw, torch.zeros_like(w))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_unbatched_rows_and_named_padding(backend: Backend, padding: str) -> None:
    x, w = torch.randn(4, 13, device=backend.device), torch.randn(6, 4, 4, device=backend.device)
    r = torch.randn(6, 13 if padding == "same" else 4, device=backend.device)
    found = F.conv1d(x, w, padding=padding, dilation=3, residual=r, activation="relu")
    ends = (4, 5) if padding == "same" else (0, 0)  # as torch: the longer one comes last
    wanted = torch.conv1d(torch.nn.functional.pad(x, ends), w, dilation=3)
    torch.testing.assert_close(found, (wanted + r).relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stride", [1, 2])
def test_nan_and_infinity_stay_in_their_window(value: float, stride: int) -> None:
    x, w = torch.randn(2, 64, 150), torch.randn(64, 64, 3)
    x[0, 1, 17] = value
    y = F.conv1d(x, w, stride=stride, padding=1, activation="relu")
    expected = torch.conv1d(x.double(), w.double(), stride=stride, padding=1).relu()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())


@needs_cpp
def test_weights_are_packed_once_for_inference_and_again_when_they_change() -> None:
    layer = pyops.nn.Conv1d(96, 80, 3, padding=1).eval()
    x = torch.randn(1, 96, 40)
    for change in (0.0, 1.0):
        with torch.no_grad():
            layer.weight += change
            found = [layer(x) for _ in range(3)]
            wanted = torch.conv1d(x, layer.weight, layer.bias, padding=1)
        kept = packed._kept[id(layer.weight)].packed
        assert kept is not None
        assert kept.numel() > 0
        for y in found:
            torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    layer.train()
    assert id(layer.weight) not in packed._kept


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_module_pads_as_torchs(mode: str) -> None:
    ours = pyops.nn.Conv1d(8, 4, 5, padding=2, padding_mode=mode)
    theirs = torch.nn.Conv1d(8, 4, 5, padding=2, padding_mode=mode)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 8, 200)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_lazy_conv1d_becomes_a_conv1d() -> None:
    module = pyops.nn.LazyConv1d(4, 3, padding=1, activation="relu")
    x = torch.randn(2, 3, 400)
    found = module(x)
    assert type(module) is pyops.nn.Conv1d
    assert repr(module).endswith("padding=(1,), activation='relu')")
    wanted = torch.conv1d(x, module.weight, module.bias, padding=1).relu()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_counted_operations_are_torchs() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for library in (F, torch.nn.functional):
        x = torch.randn(3, 8, 100, requires_grad=True)
        w = torch.randn(6, 4, 5, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            library.conv1d(x, w, stride=2, groups=2).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@needs_cpp
@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
def test_a_changed_output_leaves_torchs_gradient(activation: str) -> None:
    x, w = torch.randn(2, 8, 301), torch.randn(8, 8, 3, requires_grad=True)
    with pyops.use_backend("cpp"):
        y = F.conv1d(x, w, activation=activation)
    z = getattr(torch.nn.functional, activation)(torch.conv1d(x, w))
    found, wanted = (torch.autograd.grad(y.add_(1).sum(), w)[0] for y in (y, z))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@needs_cpp
def test_backward_unpacks_what_a_checkpoint_saved_only_once() -> None:
    """Asking for a saved tensor again is an error there."""
    x, w = torch.randn(2, 8, 301, requires_grad=True), torch.randn(8, 8, 3, requires_grad=True)
    y = checkpoint(lambda x: F.conv1d(x, w, activation="silu").square(), x, use_reentrant=False)
    wanted = torch.nn.functional.silu(torch.conv1d(x, w)).square()
    found, expected = (torch.autograd.grad(z.sum(), (x, w)) for z in (y, wanted))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
