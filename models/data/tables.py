"""Tables: made ones, and those that ship with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import DataError, first_line
from .dataset import Dataset

_LINEAR_ROWS, _LINEAR_NOISE = 1000, 0.01


def no_files(name: str, root: Path | None) -> None:
    """Raises DataError for a root folder given to a data set that reads no files."""
    if root is not None:
        raise DataError(f"{name} reads no files: leave out the data root")


def sklearn_datasets(name: str) -> ModuleType:
    """:mod:`sklearn.datasets`, which the data set ``name`` is part of."""
    try:
        import sklearn.datasets
    except ImportError as error:
        raise DataError(
            f"{name} needs scikit-learn (pip install scikit-learn): {first_line(error)}"
        ) from None
    return sklearn.datasets


def split_by_class(inputs: Any, labels: Any) -> list[torch.Tensor]:
    """Arrays as tensors, 80 : 20 with the same shares of classes: train and test inputs, then labels.

    The split is part of a data set's definition, not a run's seed: every run is tested on the same rows.
    """
    from sklearn.model_selection import train_test_split

    split = train_test_split(inputs, labels, test_size=0.2, stratify=labels, random_state=0)
    return [torch.from_numpy(part) for part in split]


def load_linear(root: Path | None) -> Dataset:
    """y = X w + b + noise with w = (2, -3.4), b = 4.2, X from N(0, 1) and noise from N(0, 0.01^2)."""
    no_files("linear", root)
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.tensor([[2.0, -3.4]]), torch.tensor([4.2])
    inputs = torch.randn(2 * _LINEAR_ROWS, 2, generator=generator)
    noise = torch.randn(2 * _LINEAR_ROWS, 1, generator=generator) * _LINEAR_NOISE
    targets = inputs @ weight.T + bias + noise
    train, test = slice(_LINEAR_ROWS), slice(_LINEAR_ROWS, None)
    return Dataset(
        "linear", inputs[train], targets[train], inputs[test], targets[test], solution=(weight, bias)
    )


def load_xor(root: Path | None) -> Dataset:
    """The four corners of a square; the class is whether the coordinates differ. Tested on themselves."""
    no_files("xor", root)
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    return Dataset("xor", inputs, labels, inputs, labels, ("equal", "different"))


def load_breast_cancer(root: Path | None) -> Dataset:
    """569 tumours by 30 measures of their cells, standardised by the training rows, 80 : 20."""
    no_files("breast_cancer", root)
    table = sklearn_datasets("breast_cancer").load_breast_cancer()
    train_x, test_x, train_y, test_y = split_by_class(table.data, table.target)
    mean, std = train_x.mean(0), train_x.std(0)
    train_x, test_x = (((part - mean) / std).float() for part in (train_x, test_x))
    return Dataset("breast_cancer", train_x, train_y.long(), test_x, test_y.long(), ("malignant", "benign"))
