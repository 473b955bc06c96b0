"""The data sets by name. ``digits``, the tables and the text need no files, MNIST and Fashion-MNIST do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .dataset import Dataset
from .errors import DataError, unknown_name
from .idx import DIGIT_NAMES, FASHION_NAMES, idx_loader, scaled
from .tables import load_breast_cancer, load_linear, load_xor, no_files, sklearn_datasets, split_by_class
from .text import load_text


def load_data(name: str, root: str | Path | None = None) -> Dataset:
    """Load the data set called ``name``; ``root`` is the folder of its files, or its file, where it has any.

    Raises:
        DataError: unknown name (the nearest are suggested), a file missing, truncated or damaged,
            or a root given to a data set that reads no files.
    """
    if name not in _LOADERS:
        raise DataError(unknown_name("data set", name, _LOADERS))
    return _LOADERS[name](None if root is None else Path(root))


def data_names() -> list[str]:
    """Names that :func:`load_data` knows."""
    return sorted(_LOADERS)


def _load_digits(root: Path | None) -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels (UCI Optical Recognition, test part), 80 : 20."""
    no_files("digits", root)
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


_LOADERS: dict[str, Callable[[Path | None], Dataset]] = {
    "breast_cancer": load_breast_cancer,
    "digits": _load_digits,
    "fashion_mnist": idx_loader("fashion_mnist", "FashionMNIST", FASHION_NAMES),
    "linear": load_linear,
    "mnist": idx_loader("mnist", "MNIST", DIGIT_NAMES),
    "text": load_text,
    "xor": load_xor,
}
