"""Triton compiles no kernel anew because the batch has another size.

Triton specialises kernels by their arguments: whether an integer is 1, or divisible by 16. Of a batch size
that would mean minutes of compiling in the last, smaller batch of an epoch. Here every op is called forward
and backward on meta tensors, for several batch sizes, with launches recorded instead of run, and Triton's own
binder says what each launch would be compiled for. A subprocess does it: an interpreted Triton has no binder.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.suite.processes import ROOT

BATCHES = (32, 31, 17, 1)

#: Most variants of kernels that a training step of ResNet-50 compiles, by its dtype and memory format.
RESNET50 = {"float32-contiguous_format": 72, "bfloat16-channels_last": 64}

#: Where another batch size takes another path on purpose.
OTHER_PATHS = {
    ("conv2d-bfloat16", 1): "of a single part, sums go into the weight's gradient itself, in 16 bits",
    ("embedding", 1): "few positions take fewer passes, the last of which leaves no partial sums",
    ("losses", 1): "weights as many as elements are those of the elements, one by one",
}

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


# ------------------------------------------------------------------------------------ the calls, by batch


def _tensor(*shape: int, dtype: torch.dtype = F32, last: bool = False, grad: bool = True) -> torch.Tensor:
    t = torch.empty(shape, dtype=dtype, device="meta")
    if last:
        t = t.to(memory_format=torch.channels_last)
    return t.requires_grad_(grad)


def _indices(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


def _backward(*outputs: Any) -> None:
    for output in outputs:
        output.backward(torch.empty_like(output))


def _convolution(n: int, channels: int, side: int, filters: int, kernel: int, **options: Any) -> None:
    import pyops.functional as F

    dtype, last = options.pop("dtype", F32), options.pop("last", False)
    pool = options.pop("pool", None)
    x = _tensor(n, channels, side, side, dtype=dtype, last=last)
    weight = _tensor(filters, channels // options.get("groups", 1), kernel, kernel, dtype=dtype)
    bias = _tensor(filters, dtype=dtype)
    if pool is None:
        _backward(F.conv2d(x, weight, bias, **options))
    else:
        _backward(F.conv2d_max_pool2d(x, weight, bias, **pool, **options))


def _batch_norm(n: int, *shape: int, dtype: torch.dtype = F32, last: bool = False, **options: Any) -> None:
    import pyops.functional as F

    x, c = _tensor(n, *shape, dtype=dtype, last=last), shape[0]
    residual = _tensor(n, *shape, dtype=dtype, last=last) if options.pop("residual", False) else None
    running = (_tensor(c, grad=False), _tensor(c, grad=False))
    y = F.batch_norm(x, *running, _tensor(c), _tensor(c), residual=residual, **options)
    _backward(y)


def _raw_batch_norm(n: int) -> None:
    """What SyncBatchNorm calls."""
    (ops, _called), x = _launchers(), _tensor(n, 24, 7, 7, grad=False)
    statistics = ops.batch_norm_statistics(x, 1)
    args = (x, None, None, None, None, None, statistics, 1, True, 0.1, 1e-5, 0, 0.0, 0.0, False)
    y, mean, rstd, _mask = ops.batch_norm_forward(*args)
    ops.batch_norm_backward_sums(y, x, None, None, None, None, mean, rstd, 1, 0, 0.0, 0.0)


def _recurrent(n: int, kind: str, inputs: int, hidden: int, steps: int, packed: bool = False) -> None:
    import pyops

    layer = getattr(pyops.nn, kind)(inputs, hidden, device="meta")
    x = _tensor(steps, n, inputs)
    if packed:
        sizes = torch.tensor([max(n - 3 * t, 1) for t in range(steps)])
        rows = _tensor(int(sizes.sum()), inputs)
        x = torch.nn.utils.rnn.PackedSequence(rows, sizes)
    y, _state = layer(x)
    _backward(y.data if packed else y)


def _embedding(n: int) -> None:
    import pyops.functional as F

    _backward(F.embedding(_indices(n, 25), _tensor(1000, 72)))
    _backward(F.embedding(_indices(n, 25), _tensor(1000, 72), scale_grad_by_freq=True, padding_idx=3))
    F.embedding(_indices(n, 25), _tensor(1000, 72, grad=False), max_norm=1.0)


def _losses(n: int) -> None:
    import pyops.functional as F

    x, y = _tensor(n, 33), _tensor(n, 33, grad=False)
    for loss in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss):
        for reduction in ("mean", "none"):
            _backward(loss(x, y, reduction=reduction))
    bce = F.binary_cross_entropy_with_logits
    weights = _tensor(33, grad=False), _tensor(n, 1, grad=False)
    _backward(bce(x, y), bce(x, y, weights[0]), bce(x, y, weights[1], pos_weight=weights[0]))


def _class_losses(n: int) -> None:
    import pyops.functional as F

    for shape in ((1000,), (19, 7, 5), (50257,)):
        target = _indices(n, *shape[1:])
        _backward(F.cross_entropy(_tensor(n, *shape), target))
        _backward(F.cross_entropy(_tensor(n, *shape), target, _tensor(shape[0], grad=False), reduction="sum",
                                  label_smoothing=0.1))  # fmt: skip
        _backward(F.nll_loss(_tensor(n, *shape), target))
        _backward(F.softmax(_tensor(n, *shape), dim=1), F.log_softmax(_tensor(n, *shape), dim=1))
    _backward(F.cross_entropy(_tensor(n, 10), _tensor(n, 10, grad=False)))
    _backward(F.linear_cross_entropy(_tensor(n, 48), _tensor(1001, 48), _indices(n)))


def _pooling(n: int, last: bool) -> None:
    import pyops.functional as F

    x = _tensor(n, 24, 15, 15, last=last)
    _backward(F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 2, return_indices=True)[0])
    _backward(F.avg_pool2d(x, 3, 2, 1), F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, 4))
    for mode in ("nearest", "nearest-exact"):
        _backward(F.interpolate(x, scale_factor=2.0, mode=mode))


def _elementwise(n: int, features: int, dtype: torch.dtype) -> None:
    import pyops.functional as F

    x, bias = _tensor(n, features, dtype=dtype), _tensor(features, dtype=dtype)
    _backward(F.relu(x), F.gelu(x), F.prelu(x, _tensor(1, dtype=dtype)), F.prelu(x, bias))
    _backward(F.dropout(x, 0.5), F.dropout(x, 0.5, bias=bias, activation="relu", residual=x))
    F.dropout(x.detach(), 0.5, inplace=True)
    F.relu(x.detach(), inplace=True)
    image = _tensor(n, 6, 12, 12, dtype=dtype)
    _backward(F.dropout(image, 0.5, bias=_tensor(6, 1, 1, dtype=dtype), activation="gelu"))
    _backward(F.prelu(image, _tensor(6, dtype=dtype)), F.prelu(_tensor(n, 3, 20, 20), _tensor(3)))


def _layer_norm(n: int) -> None:
    import pyops.functional as F

    x, weight, bias = _tensor(n, 96), _tensor(96), _tensor(96)
    _backward(F.layer_norm(x, (96,), weight, bias), F.layer_norm(_tensor(n, 33), (33,), activation="gelu"))
    image, scale = _tensor(n, 24, 7, 7, dtype=BF16), _tensor(24)
    _backward(F.group_norm(image, 4, scale, scale, activation="silu"), F.instance_norm(_tensor(n, 3, 20, 20)))


def _linear(n: int) -> None:
    import pyops.functional as F

    for inputs, outputs in ((784, 256), (33, 10)):
        x, weight, bias = _tensor(n, inputs), _tensor(outputs, inputs), _tensor(outputs)
        _backward(F.linear(x, weight, bias, activation="relu"), F.linear(x, weight, bias, dropout_p=0.5))


_POOL = {"kernel_size": 2}
CALLS: dict[str, Callable[[int], None]] = {
    "conv2d": lambda n: _convolution(n, 64, 14, 64, 3, padding=1),
    "conv2d-pointwise": lambda n: _convolution(n, 64, 14, 256, 1),
    "conv2d-strided": lambda n: _convolution(n, 64, 14, 128, 3, padding=1, stride=2, last=True),
    "conv2d-stem": lambda n: _convolution(n, 3, 64, 32, 7, padding=3, stride=2),
    "conv2d-bfloat16": lambda n: _convolution(n, 64, 14, 64, 3, padding=1, dtype=BF16, last=True),
    "conv2d-float64": lambda n: _convolution(n, 5, 9, 7, 3, dtype=F64),
    "conv2d-grouped": lambda n: _convolution(n, 64, 14, 64, 3, padding=1, groups=4),
    "conv2d-depthwise": lambda n: _convolution(n, 64, 14, 64, 3, padding=1, groups=64),
    "conv2d-depthwise-strided": lambda n: _convolution(n, 64, 14, 64, 3, stride=2, groups=64, last=True),
    "conv2d_max_pool2d": lambda n: _convolution(n, 16, 12, 32, 3, padding=1, activation="relu", pool=_POOL),
    "conv2d_max_pool2d-gelu": lambda n: _convolution(n, 16, 12, 32, 3, activation="gelu", pool=_POOL),
    "batch_norm": lambda n: _batch_norm(n, 64, 14, 14, activation="relu", residual=True, training=True),
    "batch_norm-channels_last": lambda n: _batch_norm(n, 64, 14, 14, last=True, training=True),
    "batch_norm-small": lambda n: _batch_norm(n, 24, 7, 7, dtype=BF16, training=True),
    "batch_norm-1d": lambda n: _batch_norm(max(n, 2), 33, activation="sigmoid", training=True),
    "batch_norm-running": lambda n: _batch_norm(n, 24, 7, 7),
    "batch_norm-raw": _raw_batch_norm,
    "recurrent-loop": lambda n: _recurrent(n, "GRU", 28, 32, 5),
    "recurrent-steps": lambda n: _recurrent(n, "LSTM", 28, 256, 3),
    "recurrent-packed": lambda n: _recurrent(n, "RNN", 28, 48, 5, packed=True),
    "embedding": _embedding,
    "losses": _losses,
    "class_losses": _class_losses,
    "pooling": lambda n: _pooling(n, False),
    "pooling-channels_last": lambda n: _pooling(n, True),
    "elementwise": lambda n: _elementwise(n, 33, F32),
    "elementwise-aligned": lambda n: _elementwise(n, 64, BF16),
    "layer_norm": _layer_norm,
    "linear": _linear,
}


def _resnet50(name: str, n: int) -> None:
    from pyops.models import get_network

    import pyops

    dtype, format = (getattr(torch, part) for part in name.split("-"))
    model = get_network("resnet50").make((3, 224, 224), 1000, pyops.nn, {}).to("meta", dtype)
    x = torch.empty(n, 3, 224, 224, dtype=dtype, device="meta").to(memory_format=format)
    pyops.functional.cross_entropy(model.to(memory_format=format)(x), _indices(n)).backward()


# ------------------------------------------------------------------------------ the recording subprocess


class _StandInDriver:
    """Names the GPU that would be compiled for."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


@functools.cache
def _launchers() -> tuple[SimpleNamespace, set[str]]:
    """Triton's launchers by op, as they are, and the names of those that have been called.

    torch would call an op's fake kernel for a meta tensor.
    """
    from pyops import _library

    found: dict[str, Any] = {}
    called: set[str] = set()

    def implement(namespace: str, name: str) -> Callable[[Any], Any]:
        def register(function: Any) -> Any:
            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                called.add(name)
                return function(*args, **kwargs)

            found[name] = call
            return call

        return register

    registering, _library.implement = _library.implement, implement
    try:
        import pyops.triton_kernels as package

        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    finally:
        _library.implement = registering
    return SimpleNamespace(backend="triton", without_kernel=frozenset(), **found), called


def _variants(call: Callable[[], None]) -> list[str]:
    """What Triton would compile for the launches of ``call``: kernel, types and properties of arguments."""
    from pyops.triton_kernels.tools.launch import record_launches

    with record_launches((9, 0)) as launches:
        call()
    variants = set()
    for launch in launches:
        binder = launch.kernel.device_caches[0][-1]
        _arguments, specialisation, options = binder(*launch.args, **launch.meta)
        named = zip(launch.kernel.arg_names, map(repr, specialisation), strict=True)
        described = ", ".join(f"{name}: {what}" for name, what in named)
        variants.add(f"{launch.kernel.__module__}.{launch.kernel.__name__}({described}) {options}")
    return sorted(variants)


def _main() -> None:
    import triton

    from pyops import backends

    triton.runtime.driver.set_active(_StandInDriver())
    ops, called = _launchers()
    backends.resolve = lambda tensor, op=None: ops
    torch.is_autocast_enabled = lambda device=None: False  # which knows no meta tensors
    found = {
        name: {n: _variants(lambda call=call, n=n: call(n)) for n in BATCHES} for name, call in CALLS.items()
    }
    resnet = {
        name: {n: _variants(lambda name=name, n=n: _resnet50(name, n)) for n in BATCHES[:2]}
        for name in RESNET50
    }
    uncalled = sorted(set(vars(ops)) - called - {"backend", "without_kernel"})
    json.dump({"calls": found, "resnet50": resnet, "uncalled": uncalled}, sys.stdout)


# ---------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYOPS_BACKEND")}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        [sys.executable, "-m", "tests.build.test_triton_specialisation"],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-5000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("batch", BATCHES[1:])
@pytest.mark.parametrize("call", CALLS)
def test_another_batch_size_compiles_nothing(recorded: dict[str, Any], call: str, batch: int) -> None:
    by_batch = recorded["calls"][call]
    assert by_batch[str(BATCHES[0])]
    new = _new(by_batch, batch)
    if (call, batch) in OTHER_PATHS:
        assert new, f"{call} takes no other path for {batch}"
    else:
        assert not new, "\n".join(new)


@pytest.mark.parametrize("name", RESNET50)
def test_resnet50_compiles_few_variants_once(recorded: dict[str, Any], name: str) -> None:
    by_batch = recorded["resnet50"][name]
    assert len(by_batch[str(BATCHES[0])]) <= RESNET50[name]
    new = _new(by_batch, 31)
    assert not new, "\n".join(new)


def test_every_op_is_called(recorded: dict[str, Any]) -> None:
    assert not recorded["uncalled"]


def _new(by_batch: dict[str, list[str]], batch: int) -> list[str]:
    return sorted(set(by_batch[str(batch)]) - set(by_batch[str(BATCHES[0])]))


if __name__ == "__main__":
    _main()
