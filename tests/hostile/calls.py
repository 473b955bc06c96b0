"""Good calls of everything that can be called, which the generator spoils."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import pyops
from pyops import functional as F
from tests.suite import ops
from tests.suite.backends import Backend, has_kernel, raw
from tests.suite.cases import Case


@dataclass
class Call:
    """``function(*arguments, **options)``; ``changes`` are the arguments that it may overwrite."""

    name: str
    function: Callable[..., Any]
    arguments: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    changes: tuple[int | str, ...] = ()


def valid_arguments() -> dict[str, tuple]:
    """Arguments of each raw op."""
    found: dict[str, tuple] = {}
    for module in ops.MODULES:
        if make := getattr(module, "valid_arguments", None):
            found.update(make())
    return found


def raw_call(backend: Backend, rng: random.Random) -> Call:
    made = valid_arguments()
    name = rng.choice([op for op in made if has_kernel(backend, op)])
    function = raw(backend, name)
    changes = [i for i, a in enumerate(function._schema.arguments) if a.alias_info and a.alias_info.is_write]
    return Call(f"torch.ops.{name}", function, list(made[name]), changes=tuple(changes))


# ---------------------------------------------------------------------------------------- public functions


@functools.cache
def _cases() -> dict[str, list[Case]]:
    """The small cases of each public function in the ops' contracts."""
    found: dict[str, list[Case]] = {}
    for module in ops.MODULES:
        if contract := getattr(module, "CONTRACT", None):
            sweeps = [*contract.sweeps("gradcheck"), *contract.sweeps("opcheck")]
            for case in [*contract.small, *(c for s in sweeps for c in s.cases)]:
                found.setdefault(case.op, []).append(case)
    return found


def _cell(name: str) -> Callable[[], dict[str, Any]]:
    gates, states = {"gru_cell": 3, "lstm_cell": 4}.get(name, 1), 2 if name == "lstm_cell" else 1
    hx = [torch.randn(2, 5) for _ in range(states)]
    return lambda: {
        "input": torch.randn(2, 3),
        "hx": hx[0] if states == 1 else hx,
        "w_ih": torch.randn(5 * gates, 3),
        "w_hh": torch.randn(5 * gates, 5),
        "b_ih": torch.randn(5 * gates),
        "b_hh": torch.randn(5 * gates),
    }


#: Functions that no contract's case calls directly.
_OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    name: _cell(name) for name in ("rnn_tanh_cell", "rnn_relu_cell", "gru_cell", "lstm_cell")
}
_MAY_CHANGE = {"running_mean", "running_var"}


def function_call(backend: Backend, rng: random.Random) -> Call:
    name = rng.choice(F.__all__)
    function = getattr(F, name)
    if name in _OTHERS:
        options: dict[str, Any] = _OTHERS[name]()
    else:
        case = rng.choice(_cases()[name])
        dtype = torch.float32 if rng.random() < 0.8 else torch.bfloat16
        options = {**case.tensors(dtype), **case.options}
        function = ops.OPS[name].pyops
    known = inspect.signature(getattr(F, name)).parameters
    if inspect.signature(function).parameters.keys() == known.keys():
        absent = [n for n in known if n not in options]
        for n in rng.sample(absent, min(len(absent), rng.choice([0, 0, 1]))):
            options[n] = known[n].default
    changes = [n for n in options if n in _MAY_CHANGE]
    # `inplace=True` and `inplace_backward=True` overwrite the first argument.
    return Call(f"pyops.functional.{name}", function, [], options, changes=(*changes, "input"))


# ------------------------------------------------------------------------------------------------- modules

_IMAGE, _ROWS = (2, 4, 5, 6), (5, 4)
#: Arguments and shape of the input of modules that are not in the contracts' LAYERS.
_MODULES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "Conv1d": ({"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}, (2, 4, 5)),
    "LazyConv1d": ({"out_channels": 3, "kernel_size": 2}, (2, 4, 5)),
    "Conv2d": ({"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}, _IMAGE),
    "Linear": ({"in_features": 4, "out_features": 3}, _ROWS),
    "Upsample": ({"scale_factor": 2.0}, _IMAGE),
    "UpsamplingNearest2d": ({"size": (3, 4)}, _IMAGE),
    "InstanceNorm1d": ({"num_features": 4}, (2, 4, 5)),
    "LazyConv2d": ({"out_channels": 3, "kernel_size": 2}, _IMAGE),
    "LazyLinear": ({"out_features": 3}, _ROWS),
    "LazyBatchNorm1d": ({}, _ROWS),
    "LazyBatchNorm2d": ({}, _IMAGE),
    "SyncBatchNorm": ({"num_features": 4}, _IMAGE),
    "RNN": ({"input_size": 4, "hidden_size": 3, "num_layers": 2}, (3, 2, 4)),
    "LSTM": ({"input_size": 4, "hidden_size": 3, "bidirectional": True}, (3, 2, 4)),
    "GRU": ({"input_size": 4, "hidden_size": 3, "batch_first": True}, (3, 2, 4)),
    "RNNCell": ({"input_size": 4, "hidden_size": 3}, _ROWS),
    "LSTMCell": ({"input_size": 4, "hidden_size": 3}, _ROWS),
    "GRUCell": ({"input_size": 4, "hidden_size": 3}, _ROWS),
}


def _indices(*shape: int) -> Tensor:
    return torch.randint(4, shape)


def _module_and_inputs(name: str, rng: random.Random) -> tuple[dict[str, Any], list[Tensor]]:
    if name in _MODULES:
        arguments, shape = _MODULES[name]
        return dict(arguments), [torch.randn(shape)]
    if name == "Embedding":
        return {"num_embeddings": 4, "embedding_dim": 3}, [_indices(2, 5)]
    if name == "LinearCrossEntropyLoss":
        return {"in_features": 4, "num_classes": 4}, [torch.randn(_ROWS), _indices(5)]
    arguments = dict(rng.choice(ops.joined("LAYERS")[name]))
    if not name.endswith("Loss"):
        return arguments, [torch.randn((2, 6, 10, 8) if name.endswith("2d") else _ROWS)]
    classes = name in ("CrossEntropyLoss", "NLLLoss")
    return arguments, [torch.randn(_ROWS), _indices(5) if classes else torch.rand(_ROWS)]


def module_call(backend: Backend, rng: random.Random) -> Call:
    """Construct a module and call it: the arguments of both are spoiled."""
    name = rng.choice(pyops.nn.__all__)
    constructor = getattr(pyops.nn, name)
    options, inputs = _module_and_inputs(name, rng)

    def build_and_run(*inputs: Any, **options: Any) -> Any:
        if type(options.get("num_layers")) is int and options["num_layers"] > 100:
            raise ValueError("torch's constructor makes them one after the other, for ever")
        return constructor(**options)(*inputs)

    return Call(f"pyops.nn.{name}", build_and_run, inputs, options, changes=(0,))


# --------------------------------------------------------------------------------- optimizers and `convert`


def optimizer_call(backend: Backend, rng: random.Random) -> Call:
    """Construct an optimizer and take two steps with a gradient."""
    name, options = rng.choice(
        [
            ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
            ("Adam", {"lr": 1e-3, "betas": (0.9, 0.99)}),
            ("AdamW", {"lr": 1e-3}),
        ]
    )

    def steps(params: Any, grads: Any, **options: Any) -> None:
        optimizer = getattr(pyops.optim, name)(params, **options)
        for _ in range(2):
            for p, g in zip(params, grads, strict=False):
                p.grad = g
            optimizer.step()
        optimizer.zero_grad()

    params = [torch.nn.Parameter(torch.randn(s)) for s in ((3, 5), (4,))]
    arguments = [params, [torch.randn(3, 5), torch.randn(4)]]
    return Call(f"pyops.optim.{name}", steps, arguments, dict(options), changes=(0, 1))


def _model(rng: random.Random) -> torch.nn.Module:
    nn = torch.nn
    return rng.choice(
        [
            lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)),
            lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, padding="same"), nn.SiLU(), nn.Flatten()),
        ]
    )()


def convert_call(backend: Backend, rng: random.Random) -> Call:
    """Convert a model and run it; what the arguments are spoiled to may be no model, or no input of it."""

    def convert_and_run(model: Any, x: Any, **options: Any) -> Any:
        converted = pyops.convert(model, **options)
        pyops.conversion_report(converted)
        try:
            return converted(x)
        finally:
            pyops.revert(converted)

    options = {"fuse": True}
    x = torch.randn(2, 4, 5, 6)
    if rng.random() < 0.1:
        options |= {"example_inputs": x, "seconds": 0.0}
    return Call("pyops.convert", convert_and_run, [_model(rng), x], options, changes=(0,))


#: What is called, and how often out of 100 times.
MAKERS: dict[str, tuple[Callable[[Backend, random.Random], Call], int]] = {
    "raw ops": (raw_call, 45),
    "functions": (function_call, 35),
    "modules": (module_call, 14),
    "optimizers": (optimizer_call, 3),
    "convert": (convert_call, 3),
}


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in lists and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for v in values:
            yield from tensors(v)
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
