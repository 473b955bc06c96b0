"""pyops.nn: the modules behave as torch.nn's of the same name and swap with them."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch

import pyops.nn
from pyops.convert.swap import computing_type
from tests.suite import ops
from tests.suite.backends import Backend

# Arguments with which each module that both libraries have is built.
MODULES: dict[str, list[dict[str, Any]]] = ops.joined("LAYERS")
CASES = [
    pytest.param(name, arguments, id=f"{name}-{i}")
    for name, several in MODULES.items()
    for i, arguments in enumerate(several)
]


def call(module: torch.nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    if name.endswith("2d"):
        return module(x.repeat(8, 12).view(2, 6, 10, -1))
    if not name.endswith("Loss"):
        return module(x)
    if name in ("CrossEntropyLoss", "NLLLoss", "Loss"):
        return module(x, torch.tensor([0, 2, 1, 0, 3], device=x.device))
    return module(x, torch.linspace(0, 1, 20, device=x.device).view(5, 4))


@pytest.mark.parametrize("name", [n for n in pyops.nn.__all__ if hasattr(torch.nn, n)])
def test_every_class_is_one_of_torchs(name: str) -> None:
    """``isinstance(m, nn.LSTM)`` decides in initialisers, quantisers and wrappers."""
    if name == "SyncBatchNorm":
        # DistributedDataParallel refuses instances of torch's outside of GPUs, where this one runs.
        assert issubclass(pyops.nn.SyncBatchNorm, torch.nn.modules.batchnorm._BatchNorm)
    else:
        assert issubclass(getattr(pyops.nn, name), getattr(torch.nn, name))


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_output_and_gradient_are_torchs(backend: Backend, name: str, arguments: dict) -> None:
    ours = getattr(pyops.nn, name)(**arguments).to(backend.device)
    theirs = getattr(torch.nn, name)(**arguments).to(backend.device)
    x = torch.randn(5, 4, device=backend.device, requires_grad=True)
    found, wanted = call(ours, name, x), call(theirs, name, x)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(y, x, upstream) for y in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_state_dict_repr_and_copies_are_torchs(name: str, arguments: dict) -> None:
    ours, theirs = getattr(pyops.nn, name)(**arguments), getattr(torch.nn, name)(**arguments)
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    x = torch.randn(5, 4)
    for clone in (copy.deepcopy(ours), torch.load(buffer, weights_only=False)):
        torch.testing.assert_close(call(clone, name, x), call(ours, name, x))


@pytest.mark.parametrize("name", [*MODULES, "Conv1d", "Conv2d", "LazyConv1d", "LazyConv2d"])
def test_constructor_begins_with_torchs_arguments(name: str) -> None:
    ours = list(inspect.signature(getattr(pyops.nn, name)).parameters.values())
    theirs = list(inspect.signature(getattr(torch.nn, name)).parameters.values())
    for mine, torchs in zip(ours, theirs, strict=False):
        assert (mine.name, mine.default, mine.kind) == (torchs.name, torchs.default, torchs.kind)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize(
    "name",
    [
        "adaptive_avg_pool2d",
        "batch_norm",
        "cross_entropy",
        "dropout",
        "nll_loss",
        "softmax",
        "log_softmax",
        "relu",
        "leaky_relu",
        "selu",
        "elu",
        "silu",
        "hardswish",
        "relu6",
        "hardtanh",
        "hardsigmoid",
        "mse_loss",
        "l1_loss",
        "huber_loss",
        "smooth_l1_loss",
        "binary_cross_entropy_with_logits",
    ],
)
def test_function_begins_with_torchs_arguments(name: str) -> None:
    ours = list(inspect.signature(getattr(pyops.functional, name)).parameters.values())
    theirs = list(inspect.signature(getattr(torch.nn.functional, name)).parameters.values())
    for mine, torchs in zip(ours, theirs, strict=False):
        assert (mine.name, mine.default, mine.kind) == (torchs.name, torchs.default, torchs.kind)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize(
    "name",
    ["ReLU", "LeakyReLU", "SELU", "ELU", "SiLU", "Hardswish", "ReLU6", "Hardtanh", "Hardsigmoid"],
)
def test_inplace_activation_overwrites_its_input(backend: Backend, name: str) -> None:
    x = torch.randn(5, 4, device=backend.device)
    wanted = getattr(torch.nn, name)()(x)
    module = getattr(pyops.nn, name)(inplace=True)
    assert module(x) is x
    torch.testing.assert_close(x, wanted)
    assert repr(module) == repr(getattr(torch.nn, name)(inplace=True))


def test_module_uses_the_fused_function() -> None:
    x = torch.randn(5, 4, requires_grad=True)
    with pyops.use_backend("cpp"):
        assert "_CrossEntropy" in type(call(pyops.nn.CrossEntropyLoss(), "Loss", x).grad_fn).__name__
        assert "_Softmax" in type(pyops.nn.Softmax(1)(x).grad_fn).__name__


def test_max_pool_returns_indices(backend: Backend) -> None:
    x = torch.randn(1, 2, 24, 25, device=backend.device)
    found = pyops.nn.MaxPool2d(3, return_indices=True)(x)
    wanted = torch.nn.MaxPool2d(3, return_indices=True)(x)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_what_has_no_kernel_is_torchs_own() -> None:
    assert pyops.nn.Bilinear is torch.nn.Bilinear
    assert pyops.nn.Sequential is torch.nn.Sequential
    with pytest.raises(AttributeError, match="NoSuchLayer"):
        _ = pyops.nn.NoSuchLayer
    with pytest.raises(AttributeError, match="__wrapped__"):
        _ = pyops.nn.__wrapped__


def test_lazy_conv2d_becomes_a_conv2d(backend: Backend) -> None:
    module = pyops.nn.LazyConv2d(4, 3, padding=1, activation="relu").to(backend.device)
    x = torch.randn(2, 3, 5, 7, device=backend.device)
    found = module(x)
    assert type(module) is pyops.nn.Conv2d
    assert repr(module).endswith("padding=(1, 1), activation='relu')")
    wanted = torch.nn.functional.conv2d(x, module.weight, module.bias, padding=1).relu()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(module(x), wanted)
    with pytest.raises(ValueError, match="LazyConv2d: activation"):
        pyops.nn.LazyConv2d(4, 3, activation="cube")


def test_cross_entropy_extras(backend: Backend) -> None:
    module = pyops.nn.CrossEntropyLoss(z_loss=0.1, inplace_backward=True)
    leaf = torch.randn(5, 4, device=backend.device, requires_grad=True)
    target = torch.tensor([0, 2, 1, 0, 3], device=backend.device)
    weights = torch.rand(5, device=backend.device)
    rows = torch.nn.functional.cross_entropy(leaf, target, reduction="none") + 0.1 * leaf.logsumexp(1) ** 2
    wanted = (rows * weights).sum() / 5
    found = module(leaf * 1, target, sample_weight=weights)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, leaf), torch.autograd.grad(wanted, leaf))


def test_linear_cross_entropy_loss(backend: Backend) -> None:
    class_weight = torch.tensor([0.5, 1.0, 2.0, 1.0])
    options = {"reduction": "sum", "ignore_index": 1, "label_smoothing": 0.1}
    module = pyops.nn.LinearCrossEntropyLoss(3, 4, bias=True, weight=class_weight, chunk_size=2, **options)
    assert set(module.state_dict()) == {"weight", "linear.weight", "linear.bias"}
    module.to(backend.device)
    hidden = torch.randn(5, 3, device=backend.device)
    target = torch.tensor([0, 2, 1, 0, 3], device=backend.device)
    wanted = torch.nn.functional.cross_entropy(module.logits(hidden), target, module.weight, **options)
    found = module(hidden, target)
    torch.testing.assert_close(found, wanted)
    parameters = list(module.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), rtol=1e-5, atol=1e-6
    )
    assert "in_features=3, num_classes=4, out_features=(), bias=True, reduction='sum'" in repr(module)


def test_linear_cross_entropy_loss_starts_as_a_linear_layer() -> None:
    torch.manual_seed(3)
    module = pyops.nn.LinearCrossEntropyLoss(3, 4, dtype=torch.float64)
    torch.manual_seed(3)
    linear = torch.nn.Linear(3, 4, bias=False, dtype=torch.float64)
    assert torch.equal(module.linear.weight, linear.weight)
    assert module.linear.bias is None


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="torch 2.13 has it")
def test_linear_cross_entropy_loss_is_torchs() -> None:
    theirs = torch.nn.LinearCrossEntropyLoss(5, 10, out_features=(4, 3), bias=True)
    x, target = torch.randn(2, 5), torch.randint(0, 10, (2, 4, 3))
    wanted = theirs(x, target)
    assert computing_type(pyops.convert(theirs)) is pyops.nn.LinearCrossEntropyLoss
    torch.testing.assert_close(theirs(x, target), wanted)
    theirs = torch.nn.LinearCrossEntropyLoss(5, 10, options=torch.nn.LinearCrossEntropyOptions())
    target = torch.tensor([3, 9])
    wanted = theirs(x, target)
    torch.testing.assert_close(pyops.convert(theirs)(x, target), wanted)
    ours = pyops.nn.LinearCrossEntropyLoss(5, 10, options=torch.nn.LinearCrossEntropyOptions())
    with pytest.raises(ValueError, match="options"):
        ours(x, target, sample_weight=torch.ones(2))


def _named(function: Any) -> list[tuple[str, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters]


@pytest.mark.parametrize("library", ["nn", "functional"])
def test_signatures_are_those_of_the_installed_torch(library: str) -> None:
    """Every argument of torch's, in its place and with its default; others come behind."""
    theirs, ours = torch.nn if library == "nn" else torch.nn.functional, getattr(pyops, library)
    compared = 0
    for name in ours.__all__:
        if not hasattr(theirs, name):
            continue
        try:
            wanted = _named(getattr(theirs, name))
        except ValueError:  # of C++
            continue
        if ("args", inspect.Parameter.empty) in wanted:  # of several signatures
            continue
        assert _named(getattr(ours, name))[: len(wanted)] == wanted, name
        compared += 1
    assert compared >= 15


def test_lazy_layers_print_and_become_ours() -> None:
    """Their printing raised, and lazy batch norms became torch's."""
    nn = torch.nn
    layers = [nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4), nn.LazyBatchNorm1d()]
    model = pyops.convert(nn.Sequential(*layers))
    assert "LazyConv2d(0, 3" in repr(model)
    assert "activation='relu'" in repr(pyops.nn.LazyConv2d(3, 3, activation="relu"))
    model(torch.randn(5, 2, 6, 6))
    kinds = [pyops.nn.Conv2d, pyops.nn.BatchNorm2d, nn.Flatten, pyops.nn.Linear, pyops.nn.BatchNorm1d]
    assert [computing_type(layer) for layer in model] == kinds
    assert "0 + 1" in str(pyops.conversion_report(model))
    assert type(pyops.revert(model)[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_without_units(kind: str) -> None:
    found = getattr(pyops.nn, kind)(3, 0)(torch.randn(2, 3))
    assert (found if isinstance(found, torch.Tensor) else found[0]).shape == (2, 0)
