"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError, unknown_name
from .csv_tables import load_csv, load_diabetes, load_house_prices
from .dataset import Dataset
from .image_folder import load_image_folder
from .mnist import DIGIT_NAMES, FASHION_NAMES, mnist_loader
from .scikit_learn import load_breast_cancer, load_digits
from .synthetic import load_linear, load_xor
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
    if name in _BUILT_IN:
        if root is not None:
            raise DataError(f"{name} reads no files: leave out the data root")
        return _BUILT_IN[name]()
    path = None if root is None else Path(root)
    if name in _TABLES:
        return _TABLES[name](path, target, fill_missing)
    return _PUBLIC[name](path, download) if name in _PUBLIC else _FILES[name](path)


def data_names() -> list[str]:
    """Names that :func:`load_data` knows."""
    return sorted((*_BUILT_IN, *_FILES, *_TABLES, *_PUBLIC))


def reads_no_files(name: str) -> bool:
    """Whether the data set called ``name`` is there without files of yours."""
    return name in _BUILT_IN


#: They need no files.
_BUILT_IN: dict[str, Callable[[], Dataset]] = {
    "breast_cancer": load_breast_cancer,
    "diabetes": load_diabetes,
    "digits": load_digits,
    "linear": load_linear,
    "xor": load_xor,
}
#: They are read from files of yours; text has a default.
_FILES: dict[str, Callable[[Path | None], Dataset]] = {
    "images": load_image_folder,
    "text": load_text,
}
#: They are read from tables of yours, one column of which is predicted.
_TABLES: dict[str, Callable[[Path | None, str | None, bool | None], Dataset]] = {
    "csv": load_csv,
    "house_prices": load_house_prices,
}
#: They are read from public files, which can be downloaded.
_PUBLIC: dict[str, Callable[[Path | None, bool], Dataset]] = {
    "fashion_mnist": mnist_loader("fashion_mnist", "FashionMNIST", FASHION_NAMES),
    "mnist": mnist_loader("mnist", "MNIST", DIGIT_NAMES),
}
