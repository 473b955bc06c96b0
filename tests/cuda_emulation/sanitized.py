"""Run with AddressSanitizer preloaded by ``tests/backends/test_cuda_emulation.py``.

``ops LIBRARY`` runs every emulated op over shapes that reach every kernel's edges; ``overflow LIBRARY`` runs
the self-test kernel that writes past a shared array, which must end the process.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys

# (shape, storage offset): each launch regime at sizes that are no multiple of a pack or a warp.
SHAPES = [
    ((0, 5), 0),
    ((3, 0), 0),
    ((1,), 0),
    ((5, 1), 0),
    ((300, 3), 1),
    ((7, 17), 3),
    ((3, 131), 1),
    ((2, 1031), 5),
    ((1, 20011), 7),
    ((2, 13, 5), 1),
    ((2, 101, 3, 3), 0),
]
IGNORE_INDEX = -100


def run_ops() -> None:
    import torch

    from tests.cuda_emulation import build
    from tests.suite import ops as suite_ops

    build.load()
    ops = torch.ops.pyops_emulated
    generator = torch.Generator().manual_seed(0)

    def random(shape: tuple[int, ...], offset: int, dtype: torch.dtype) -> torch.Tensor:
        size = torch.Size(shape).numel()
        return torch.rand(offset + size, generator=generator).to(dtype)[offset:].view(shape)

    for (shape, offset), dtype in itertools.product(SHAPES, (torch.float32, torch.bfloat16, torch.float64)):
        dim = min(1, len(shape) - 1)
        classes, rows = shape[dim], shape[:dim] + shape[dim + 1 :]
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        x, weight = random(shape, offset, dtype), random((classes,), 0, acc)
        for log in (False, True):
            y = ops.softmax_forward(x, dim, log)
            ops.softmax_backward(random(shape, offset, dtype), y, dim, log)
        index = torch.randint(-2, classes + 2, rows, generator=generator)
        index.view(-1)[:1] = IGNORE_INDEX
        targets = [index] if classes == 0 else [index, random(shape, offset, dtype)]
        huge = torch.full_like(index, 2**62)
        for target, smoothing, reduction in itertools.product([*targets, huge, -huge], (0.0, 0.1), (0, 1)):
            options = (reduction, IGNORE_INDEX, smoothing, 0.01)
            loss, stats, divisor = ops.cross_entropy_forward(x, target, weight, None, *options)
            arguments = (loss, None, x, target, weight, None, stats, divisor, *options)
            ops.cross_entropy_backward(*arguments)
        for target, reduction in itertools.product([index, huge], (0, 1)):
            loss, total = ops.nll_loss_forward(x, target, weight, reduction, IGNORE_INDEX)
            ops.nll_loss_backward(loss, target, weight, total, classes, reduction, IGNORE_INDEX, dtype)
        other = random(shape, offset, dtype)
        factors = (other, 1, random((classes,), 0, dtype), max(1, torch.Size(shape[dim + 1 :]).numel()))
        for kind, reduction in itertools.product((2, 4), (0, 1)):
            tensors = (x, other, *(factors if kind == 4 else (None, 1, None, 1)))
            loss, divisor = ops.elementwise_loss_forward(*tensors, kind, 0.5, reduction)
            ops.elementwise_loss_backward(loss, *tensors, divisor, kind, 0.5, reduction, kind == 2)
    for module in suite_ops.MODULES:
        getattr(module, "run_sanitized", lambda ops: None)(ops)


def run_overflow() -> None:
    error = ctypes.create_string_buffer(1000)
    ctypes.CDLL(os.environ["PYOPS_EMULATION_LIBRARY"]).run_shared_overflow(
        (ctypes.c_float * 64)(), error, 1000
    )


if __name__ == "__main__":
    {"ops": run_ops, "overflow": run_overflow}[sys.argv[1]]()
    print("finished")
