"""CSV files as tables of numbers, the way the notes prepare Kaggle's house prices.

A numeric column is standardised by its training rows, and missing values become 0, the mean. Any other column
becomes columns of 0 and 1: one for missing values and one for each value. Test rows have no influence on the
encoding.

``house_prices`` reads Kaggle's ``train.csv`` and ``test.csv``; ``csv`` any table. In a folder, ``test.csv``
is the test part if it has the target column. If it has not, its rows are predicted (``submission.csv``), and
a fifth of the training rows is the test part, as when there is no ``test.csv``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import DataError, unknown_name
from .dataset import Dataset, Unlabelled
from .scikit_learn import sklearn_datasets
from .table_encoding import Encoding, is_number, read_table

if TYPE_CHECKING:
    import pandas

_TRAIN, _TEST = "train.csv", "test.csv"
_TEST_SHARE = 0.2
_LEAST_ROWS = 5
#: At most so many values in a text column: more are names, or numbers that could not be read.
_MOST_VALUES = 1000


@dataclass(frozen=True)
class Columns:
    """What is known of a table: the column to predict (None: the last), the one that only names the rows,
    whether missing values are filled in, and what the data set is called."""

    name: str
    target: str | None
    row_name: str | None
    fill_missing: bool


def load_house_prices(root: Path | None, target: str | None, fill_missing: bool | None) -> Dataset:
    """Kaggle's house prices from the folder that holds them."""
    if root is None:
        raise DataError("house_prices is read from Kaggle's train.csv and test.csv: give their folder")
    columns = Columns("house_prices", target or "SalePrice", "Id", fill_missing is not False)
    return _load(root, columns)


def load_csv(root: Path | None, target: str | None, fill_missing: bool | None) -> Dataset:
    """A table of yours; the target is a value where it is a number, and a class where it is not.

    Missing values are refused unless they are to be filled in.
    """
    if root is None:
        raise DataError("csv is read from a file: give it, or a folder with train.csv, as the data root")
    return _load(root, Columns("csv", target, None, bool(fill_missing)))


def load_diabetes() -> Dataset:
    """442 patients by 10 measures, and the progress of their diabetes in a year, 80 : 20."""
    table = sklearn_datasets("diabetes").load_diabetes(as_frame=True, scaled=False).frame
    return _dataset(table, None, Columns("diabetes", "target", None, False), "diabetes")


def _load(root: Path, columns: Columns) -> Dataset:
    train_path, test_path = (root / _TRAIN, root / _TEST) if root.is_dir() else (root, None)
    if not train_path.is_file():
        raise DataError(f"{columns.name}: {train_path} does not exist")
    train = _read(train_path)
    test = _read(test_path) if test_path is not None and test_path.is_file() else None
    return _dataset(train, test, columns, str(train_path))


def _read(path: Path) -> pandas.DataFrame:
    table = read_table(path, 0)
    if len(table) < _LEAST_ROWS or table.shape[1] < 2:
        rows, columns = table.shape
        raise DataError(
            f"{path}: at least {_LEAST_ROWS} rows and 2 columns are needed, it has {rows} and {columns}"
        )
    return table


def _dataset(
    train: pandas.DataFrame, test: pandas.DataFrame | None, columns: Columns, source: str
) -> Dataset:
    """Targets and encoded features of the tables; ``source`` names the training table in errors."""
    target = train.columns[-1] if columns.target is None else columns.target
    if target not in train.columns:
        raise DataError(f"{source}: {unknown_name('target column', target, map(str, train.columns))}")
    targets, class_names = _targets(train[target], source)
    labelled_test = test is not None and target in test.columns
    dropped = [target, columns.row_name]
    features = train.drop(columns=dropped, errors="ignore")
    others = None if test is None else test.drop(columns=dropped, errors="ignore")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    tests = 0 if labelled_test else max(1, round(len(train) * _TEST_SHARE))
    kept, held_out = order[tests:], order[:tests]
    fitted = features if labelled_test else features.iloc[kept.numpy()]
    encoding = Encoding.of(fitted, str(target), columns.fill_missing)
    encoding.check(features, source)
    if others is not None:
        encoding.check(others, _TEST)
    _check_texts(features, source)
    if labelled_test:
        test_targets = _encode_classes(test[target], class_names) if class_names else _values(test[target])
        train_x, test_x = encoding.encode(features), encoding.encode(others)
        return Dataset(columns.name, train_x, targets, test_x, test_targets, class_names, encoding=encoding)
    unlabelled = None
    if others is not None:
        row_name = columns.row_name or "Id"
        names = test[row_name] if row_name in test.columns else range(1, len(test) + 1)
        unlabelled = Unlabelled(encoding.encode(others), tuple(map(str, names)), row_name, str(target))
    return Dataset(
        columns.name,
        encoding.encode(fitted),
        targets[kept],
        encoding.encode(features.iloc[held_out.numpy()]),
        targets[held_out],
        class_names,
        unlabelled=unlabelled,
        encoding=encoding,
    )


def _targets(column: pandas.Series, source: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Values [N, 1] of numbers and no names, or labels [N] and the names of the classes."""
    missing = int(column.isna().sum())
    if missing:
        raise DataError(f"{source}: target column {column.name!r} lacks {missing} values")
    if is_number(column):
        values = _values(column)
        if not values.isfinite().all():
            raise DataError(f"{source}: target column {column.name!r} has infinite values")
        return values, ()
    names = tuple(sorted(map(str, column.unique())))
    return _encode_classes(column, names), names


def _values(column: pandas.Series) -> torch.Tensor:
    return torch.tensor(column.to_numpy("float32")).unsqueeze(1)


def _encode_classes(column: pandas.Series, names: tuple[str, ...]) -> torch.Tensor:
    numbers = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(map(str, column)) - set(numbers))
    if unknown:
        raise DataError(f"the test rows have a class that no training row has: {unknown[0]!r}")
    return torch.tensor([numbers[str(value)] for value in column], dtype=torch.int64)


def _check_texts(train: pandas.DataFrame, source: str) -> None:
    for name in train.columns:
        values = train[name].nunique()
        if not is_number(train[name]) and values > _MOST_VALUES:
            raise DataError(f"{source}: column {name!r} is text with {values} different values: drop it")
