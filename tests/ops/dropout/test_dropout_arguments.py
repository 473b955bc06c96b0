"""What dropout takes and refuses: options, dtypes, in place, the module; errors, and those of raw ops."""

from __future__ import annotations

import pytest
import torch

import pyops
import pyops.functional as F
from tests.suite.backends import Backend

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_to_drop_returns_the_input(backend: Backend, inplace: bool) -> None:
    for x in (torch.randn(3, device=backend.device), torch.arange(3), torch.empty(0)):
        assert F.dropout(x, 0.0, True, inplace) is x
        assert F.dropout(x, 0.5, False, inplace) is x
    assert F.dropout(torch.empty(0, 3), 0.5).shape == (0, 3)


@pytest.mark.parametrize("arguments", [{"p": 0.0}, {"training": False}])
def test_fused_form_without_mask_still_adds_and_activates(backend: Backend, arguments: dict) -> None:
    x, bias, residual = (torch.randn(shape, device=backend.device) for shape in [(4, 6), (6,), (4, 6)])
    found = F.dropout(x, bias=bias, activation="tanh", residual=residual, **arguments)
    torch.testing.assert_close(found, residual + torch.tanh(x + bias))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_as_in_torch(dtype: torch.dtype) -> None:
    x = torch.ones(4, 4).to(dtype)
    with pytest.raises(TypeError, match=r"dropout: input must be a floating-point tensor, got torch\."):
        F.dropout(x, 0.5)
    found, wanted = F.dropout(x, 1.0), torch.nn.functional.dropout(x, 1.0)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


def test_inplace_writes_into_the_input(backend: Backend) -> None:
    for make in (lambda x: x, lambda x: x.t(), lambda x: x[:, ::2]):
        base = torch.rand(6, 8, device=backend.device) + 1
        x = make(base.clone())
        before, pointer = x.clone(), x.data_ptr()
        y = F.dropout(x, 0.5, inplace=True)
        assert y is x
        assert y.data_ptr() == pointer
        torch.testing.assert_close(y, before * (y != 0) * 2)
        assert 0 < (y != 0).sum() < y.numel()


def test_inplace_in_a_graph(backend: Backend) -> None:
    leaf = (torch.rand(6, 8, device=backend.device) + 1).requires_grad_()
    for make in (lambda x: x * 1, lambda x: (x * 1)[:, ::2], lambda x: (x * 1)[1:3]):
        x = make(leaf)
        y = F.dropout(x, 0.5, inplace=True)
        assert y is x
        (found,) = torch.autograd.grad(y.sum(), leaf, retain_graph=True)
        wanted = torch.zeros_like(leaf)
        make_view = {(6, 8): wanted, (6, 4): wanted[:, ::2], (2, 8): wanted[1:3]}[tuple(y.shape)]
        make_view.copy_((y != 0) * 2.0)
        torch.testing.assert_close(found, wanted)
    square = leaf**2
    z = square.exp()
    F.dropout(z, 0.5, inplace=True)  # exp needs its output
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_inplace_on_a_leaf_is_refused_and_leaves_it_alone(backend: Backend) -> None:
    leaf = torch.ones(50, device=backend.device, requires_grad=True)
    for x in (leaf, leaf[1:]):
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            F.dropout(x, 0.5, inplace=True)
    assert (leaf == 1).all()
    with torch.no_grad():
        assert F.dropout(leaf, 0.5, inplace=True) is leaf


@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("which", ["bias", "residual"])
def test_dtypes_are_promoted_as_in_a_sum(backend: Backend, which: str, other: torch.dtype) -> None:
    x = torch.randn(4, 6, device=backend.device)
    tensor = torch.randn(6 if which == "bias" else (4, 6), device=backend.device).to(other)
    found = F.dropout(x, 0.0, **{which: tensor})
    torch.testing.assert_close(found, x + tensor)


def test_module(backend: Backend) -> None:
    module = pyops.nn.Dropout(0.25)
    x = torch.rand(300, device=backend.device) + 1
    torch.manual_seed(2)
    found = module(x)
    torch.manual_seed(2)
    assert torch.equal(found, F.dropout(x, 0.25))
    assert module.eval()(x) is x
    assert repr(pyops.nn.Dropout(0.1, True)) == repr(torch.nn.Dropout(0.1, True))
    fused = pyops.nn.Dropout(0.25, activation="relu")
    assert "activation='relu'" in repr(fused)
    bias = torch.randn(300, device=backend.device)
    torch.testing.assert_close(fused.eval()(-x, bias=bias, residual=x), x + torch.relu(bias - x))


# -------------------------------------------------------------------------------------------------- errors


def test_meta_tensors_give_shapes() -> None:
    x, bias = torch.empty(3, 5, device="meta"), torch.empty(5, device="meta")
    assert F.dropout(x).shape == (3, 5)
    assert F.dropout(x, bias=bias, activation="relu").shape == (3, 5)
