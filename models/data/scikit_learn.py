"""The data sets that ship with scikit-learn, and its split into training and test rows."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from ..errors import DataError, first_line
from .dataset import Dataset
from .images import scaled
from .mnist import DIGIT_NAMES


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


def load_digits() -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels (UCI Optical Recognition, test part), 80 : 20."""
    digits = sklearn_datasets("digits").load_digits()
    train_x, test_x, train_y, test_y = split_by_class(digits.images, digits.target)
    return Dataset(
        "digits",
        scaled(train_x, 16),
        train_y.long(),
        scaled(test_x, 16),
        test_y.long(),
        DIGIT_NAMES,
    )


def load_breast_cancer() -> Dataset:
    """569 tumours by 30 measures of their cells, standardised by the training rows, 80 : 20."""
    table = sklearn_datasets("breast_cancer").load_breast_cancer()
    train_x, test_x, train_y, test_y = split_by_class(table.data, table.target)
    mean, std = train_x.mean(0), train_x.std(0)
    train_x, test_x = (((part - mean) / std).float() for part in (train_x, test_x))
    return Dataset("breast_cancer", train_x, train_y.long(), test_x, test_y.long(), ("malignant", "benign"))
