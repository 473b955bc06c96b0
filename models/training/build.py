"""A trainer of a fresh network, with everything that the seed decides."""

from __future__ import annotations

import random

import numpy as np
import torch

import pyops

from ..data.dataset import Dataset
from ..errors import TrainError
from ..networks.tools.initialization import RULES
from ..recipe import Recipe
from ..registry import Network, layer_library
from .distributed import ALONE, Workers, share_statistics
from .trainer import Trainer


def build_trainer(
    network: Network,
    data: Dataset,
    recipe: Recipe,
    *,
    layers: str,
    seed: int,
    device: torch.device,
    workers: Workers = ALONE,
) -> Trainer:
    """A trainer of a fresh ``network`` of layer library ``layers``, ``"pyops"`` or ``"torch"``.

    The same seed gives the same initial weights and order of samples with either library and on
    every device: they are drawn on the CPU, from torch's global generator, which is seeded here, as are
    NumPy's and Python's.
    """
    if recipe.cuda_graph and (device.type != "cuda" or workers.size > 1):
        raise TrainError(f"cuda_graph takes one process on a GPU, got {workers.size} on {device.type}")
    library = layer_library(layers)
    if recipe.augment and data.kind != "images":
        raise TrainError(f"augment {recipe.augment!r} is for images, but {data.name} has {data.kind}")
    data = data.resized(recipe.resize)
    if recipe.validation:
        data = data.with_validation(recipe.validation, seed)
    _seed_everything(seed)
    outputs = network.task.num_outputs(network.name, data)
    net = network.make(data.input_shape, outputs, library, recipe.options)
    if recipe.init is not None:
        net = RULES[recipe.init](net)
    if workers.size > 1:
        net = share_statistics(net, layers, device)
    if layers == "pyops":
        net = pyops.convert(net)  # what is adjacent becomes one kernel; names and parameters stay
    if workers.rank:
        _seed_everything(seed + workers.rank)  # the same weights, but masks of its own
    return Trainer(
        net,
        data,
        recipe,
        task=network.task.with_loss(recipe.loss),
        layers=library,
        seed=seed,
        device=device,
        workers=workers,
    )


def _seed_everything(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python, of which NumPy's takes 32 bits."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
