"""``python -m tests.suite.fuzz BACKEND ROUNDS``: raw ops with spoiled arguments must raise or run, not crash.

Each round takes valid arguments of one op and replaces one to three of them by others of the same kind: a
tensor of another shape, dtype, layout or device, an integer out of range, a float that is no number.
"""

from __future__ import annotations

import random
import sys

import torch
from torch import Tensor

from . import layouts, ops
from .backends import BACKENDS, Backend, activate, has_kernel, raw

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool]
SHAPES = [(), (0,), (1,), (3,), (5,), (3, 5), (5, 3), (0, 5), (3, 0), (3, 5, 2), (2, 3), (2, 0), (1, 1, 1, 1)]
INTEGERS = [-(2**63), -(2**31) - 1, -100, -3, -1, 0, 1, 2, 3, 4, 5, 2**31, 2**60, 2**63 - 1]
FLOATS = [-1.0, 0.0, 0.1, 1.0, 1.5, float("nan"), float("inf"), -1e300]


def valid_arguments() -> dict[str, tuple]:
    found: dict[str, tuple] = {}
    for module in ops.MODULES:
        if make := getattr(module, "valid_arguments", None):
            found.update(make())
    return found


def random_tensor(rng: random.Random, device: str) -> Tensor:
    tensor = torch.ones(rng.choice(SHAPES)).to(rng.choice(DTYPES))
    if rng.random() < 0.3:
        tensor = tensor * rng.choice([-7, 4, 5, 100])
    if rng.random() < 0.3:
        tensor = rng.choice(list(layouts.LAYOUTS.values()))(tensor)
    return tensor.to("meta" if rng.random() < 0.05 else device)


def spoiled(rng: random.Random, value: object, device: str) -> object:
    if isinstance(value, list):
        # Sizes of a shape: large ones would be allocated and filled before anything can be wrong with them.
        changed = [spoiled(rng, v, device) for v in value]
        return changed[: rng.choice([1, 3, 3])] if 2**31 not in changed else value
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(INTEGERS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, torch.dtype):
        return rng.choice(DTYPES)
    return random_tensor(rng, device)


def fuzz(backend: Backend, rounds: int, seed: int = 0) -> None:
    activate(backend)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    accepted = refused = 0
    served = [op for op in valid_arguments() if has_kernel(backend, op)]
    for _ in range(rounds):
        op = rng.choice(served)
        arguments = valid_arguments()[op]
        changed = list(arguments)
        for i in rng.sample(range(len(changed)), min(len(changed), rng.randint(1, 3))):
            changed[i] = spoiled(rng, changed[i], backend.device)
        moved = [a.to(backend.device) if isinstance(a, Tensor) and not a.is_meta else a for a in changed]
        try:
            raw(backend, op)(*moved)
            accepted += 1
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            refused += 1
    if backend.device == "cuda":
        torch.cuda.synchronize()
    print(f"{accepted} accepted, {refused} refused")
    assert accepted, "every call was refused: the fuzzer is not testing anything"
    assert refused, "no call was refused: the fuzzer is not testing anything"


if __name__ == "__main__":
    fuzz(next(b for b in BACKENDS if str(b) == sys.argv[1]), int(sys.argv[2]))
