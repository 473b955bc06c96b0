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

from ..errors import DataError, first_line, unknown_name
from .dataset import Dataset, Unlabelled
from .scikit_learn import sklearn_datasets

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
    try:
        import pandas
    except ImportError as error:
        raise DataError(f"tables need pandas (pip install pandas): {first_line(error)}") from None
    try:
        table = pandas.read_csv(path)
    except (OSError, ValueError) as error:  # parser and encoding errors are ValueErrors
        raise DataError(f"{path}: cannot be read as CSV: {first_line(error)}") from None
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
    _check_features(features, others, columns.fill_missing, source)
    if labelled_test:
        test_targets = _encode_classes(test[target], class_names) if class_names else _values(test[target])
        train_x, (test_x,) = _encoded(features, [others])
        return Dataset(columns.name, train_x, targets, test_x, test_targets, class_names)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    tests = max(1, round(len(train) * _TEST_SHARE))
    kept, held_out = order[tests:], order[:tests]
    rest = [features.iloc[held_out.numpy()], *([] if others is None else [others])]
    train_x, (test_x, *to_predict) = _encoded(features.iloc[kept.numpy()], rest)
    unlabelled = None
    if to_predict:
        row_name = columns.row_name or "Id"
        names = test[row_name] if row_name in test.columns else range(1, len(test) + 1)
        unlabelled = Unlabelled(to_predict[0], tuple(map(str, names)), row_name, str(target))
    return Dataset(
        columns.name,
        train_x,
        targets[kept],
        test_x,
        targets[held_out],
        class_names,
        unlabelled=unlabelled,
    )


def _is_number(column: pandas.Series) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)


def _targets(column: pandas.Series, source: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Values [N, 1] of numbers and no names, or labels [N] and the names of the classes."""
    missing = int(column.isna().sum())
    if missing:
        raise DataError(f"{source}: target column {column.name!r} lacks {missing} values")
    if _is_number(column):
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


def _check_features(
    train: pandas.DataFrame, test: pandas.DataFrame | None, fill_missing: bool, source: str
) -> None:
    for table in (train,) if test is None else (train, test):
        where = source if table is train else _TEST
        absent = [name for name in train.columns if name not in table.columns]
        if absent:
            raise DataError(f"{where}: no column {absent[0]!r}, which the training rows have")
        for name in train.columns:
            column = table[name]
            if _is_number(column) != _is_number(train[name]) and not column.isna().all():
                raise DataError(f"{where}: column {name!r} holds numbers in one file and text in another")
            missing = column.isna()
            if missing.any() and not fill_missing:
                row = int(missing.to_numpy().argmax()) + 2  # lines count from 1, and the first is the header
                raise DataError(
                    f"{where}: NaN or nothing in column {name!r}, line {row}: repair it, or have missing "
                    "values filled in"
                )
            if _is_number(column) and column.abs().max() == float("inf"):
                raise DataError(f"{where}: infinite value in column {name!r}")
    for name in train.columns:
        values = train[name].nunique()
        if not _is_number(train[name]) and values > _MOST_VALUES:
            raise DataError(f"{source}: column {name!r} is text with {values} different values: drop it")


def _encoded(
    train: pandas.DataFrame, others: list[pandas.DataFrame]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Features of the training rows and of other rows, both encoded as the training rows decide."""
    import pandas

    numeric = [name for name in train.columns if _is_number(train[name])]
    values = train[numeric].astype("float64")
    mean, std = values.mean(), values.std(ddof=0)
    std = std.where(std > 0, 1.0)  # a constant column becomes 0
    text = [name for name in train.columns if name not in numeric]
    known = {name: sorted(train[name].dropna().astype(str).unique()) for name in text}

    def encode(table: pandas.DataFrame) -> torch.Tensor:
        numbers = ((table[numeric].astype("float64") - mean) / std).fillna(0.0)
        parts = [torch.from_numpy(numbers.to_numpy("float32", copy=True))]
        for name in text:
            column = table[name]
            codes = pandas.Index(known[name]).get_indexer(column.astype(str))  # -1 of unknown values
            codes = torch.from_numpy(codes.astype("int64"))
            ones = torch.nn.functional.one_hot(codes + 1, len(known[name]) + 1)
            ones[:, 0] = torch.from_numpy(column.isna().to_numpy("int64"))
            parts.append(ones.float())
        return torch.cat(parts, 1)

    return encode(train), [encode(table) for table in others]
