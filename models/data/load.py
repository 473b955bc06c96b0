"""The data sets by name. ``digits``, the tables and the text need no files, MNIST and Fashion-MNIST do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError, unknown_name
from .csv_tables import load_csv, load_diabetes, load_house_prices
from .dataset import Dataset
from .idx import DIGIT_NAMES, FASHION_NAMES, idx_loader, scaled
from .image_folder import load_image_folder
from .tables import load_breast_cancer, load_linear, load_xor, no_files, sklearn_datasets, split_by_class
from .text import load_text


def load_data(
    name: str,
    root: str | Path | None = None,
    *,
    target: str | None = None,
    fill_missing: bool | None = None,
    download: bool = False,
) -> Dataset:
    """Load the data set called ``name``; ``root`` is the folder of its files, or its file, where it has any.

    ``target`` names the column of a CSV table that is to be predicted; ``fill_missing`` says whether its
    missing values are filled in rather than refused. ``download`` fetches missing files of the data sets
    that are public ones.

    Raises:
        DataError: unknown name (the nearest are suggested), a file missing, truncated or damaged,
            or a root, a target or missing values where the data set has no such thing.
    """
    if name not in data_names():
        raise DataError(unknown_name("data set", name, data_names()))
    if name not in _TABLES and (target is not None or fill_missing is not None):
        raise DataError(f"{name} is no CSV table: leave out target and fill_missing")
    if name not in _PUBLIC and download:
        raise DataError(f"{name} is not downloaded: leave out download")
    path = None if root is None else Path(root)
    if name in _TABLES:
        return _TABLES[name](path, target, fill_missing)
    return _PUBLIC[name](path, download) if name in _PUBLIC else _LOADERS[name](path)


def data_names() -> list[str]:
    """Names that :func:`load_data` knows."""
    return sorted((*_LOADERS, *_PUBLIC, *_TABLES))


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
    "diabetes": load_diabetes,
    "digits": _load_digits,
    "images": load_image_folder,
    "linear": load_linear,
    "text": load_text,
    "xor": load_xor,
}
_PUBLIC: dict[str, Callable[[Path | None, bool], Dataset]] = {
    "fashion_mnist": idx_loader("fashion_mnist", "FashionMNIST", FASHION_NAMES),
    "mnist": idx_loader("mnist", "MNIST", DIGIT_NAMES),
}
_TABLES: dict[str, Callable[[Path | None, str | None, bool | None], Dataset]] = {
    "csv": load_csv,
    "house_prices": load_house_prices,
}
