"""Time to the first step: from a network of torch's layers to the end of its first training step.

Each measurement is a process of its own, :data:`_PROGRAM`: compiling, and importing pyops, happen once in a
process. Neither side finds anything in a cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import pyops

from .cases import training_step
from .measure.case import TRAINING_STEP
from .measure.harness import Spread

NETWORKS = ("mlp", "lenet")
WAYS = ("pyops cpp", "eager", "compile")
_REPEATS = 3

# The network comes from a file, as torch's layers alone: pyops is imported by those who use it.
_PROGRAM = """
import sys, time
import torch
net, images, labels = torch.load(sys.argv[1], weights_only=False)
start = time.perf_counter()
loss_of, optim = torch.nn.functional.cross_entropy, torch.optim
if sys.argv[2] == "pyops cpp":
    import pyops
    net, loss_of, optim = pyops.convert(net), pyops.functional.cross_entropy, pyops.optim
step = lambda images, labels: loss_of(net(images), labels)
if sys.argv[2] == "compile":
    step = torch.compile(step, dynamic=False)
optimizer = optim.SGD(net.parameters(), lr=0.1, fused=True)
step(images, labels).backward()
optimizer.step()
print(time.perf_counter() - start)
"""


def measure(network: str, ways: tuple[str, ...] = WAYS, repeats: int = _REPEATS) -> dict[str, Any]:
    """Seconds by way, as a result of the harness; the case is that of the network's training step."""
    case = next(c for c in training_step.CASES if c.network == network)
    samples: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pt"
        training = case.run("torch", case.build("cpu"))
        torch.save((training.net, *training.inputs.values()), file)
        for number in range(repeats):
            for way in ways:
                samples[way].append(_one(file, way, Path(folder) / f"{way}{number}"))
    baselines = [way for way in ways if not way.startswith("pyops")]
    best = min(baselines, key=lambda way: statistics.median(samples[way]))
    subjects = [way for way in ways if way.startswith("pyops")]
    ratios = {s: [b / t for b, t in zip(samples[best], samples[s], strict=True)] for s in subjects}
    return {
        "case": case.name,
        "mode": TRAINING_STEP,
        "seconds": {way: asdict(Spread.of(values)) for way, values in samples.items()},
        "samples": samples,
        "best_baseline": best,
        "speedup": {subject: asdict(Spread.of(values)) for subject, values in ratios.items()},
        "floor_seconds": None,
        "peak": {},
        "left_out": {},
    }


def _one(file: Path, way: str, cache: Path) -> float:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(pyops.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [sys.executable, "-c", _PROGRAM, str(file), way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        message = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"first step, {way}: {message[0]}")
    return float(done.stdout.split()[-1])
