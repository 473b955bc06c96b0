"""How rows of a table become numbers, as the training rows decide; kept with a run, for other rows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import DataError, first_line

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Encoding:
    """``numbers`` are the numeric columns, each with mean and standard deviation; ``texts`` the others, each
    with its values. ``target`` is the column that is predicted."""

    target: str
    fill_missing: bool
    numbers: dict[str, tuple[float, float]]
    texts: dict[str, list[str]]

    @classmethod
    def of(cls, train: pandas.DataFrame, target: str, fill_missing: bool) -> Encoding:
        """That of the features ``train``."""
        numeric = [name for name in train.columns if is_number(train[name])]
        values = train[numeric].astype("float64")
        with np.errstate(invalid="ignore"):  # infinite values are refused, by :meth:`check`
            mean, std = values.mean(), values.std(ddof=0)
        std = std.where(std > 0, 1.0)  # a constant column becomes 0
        numbers = {str(name): (float(mean[name]), float(std[name])) for name in numeric}
        texts = {
            str(name): sorted(train[name].dropna().astype(str).unique())
            for name in train.columns
            if name not in numeric
        }
        return cls(target, fill_missing, numbers, texts)

    def check(self, table: pandas.DataFrame, where: str) -> None:
        """Raises DataError for columns that are absent or of another type, and for values that are missing
        or infinite; ``where`` names the table."""
        for name in (*self.numbers, *self.texts):
            if name not in table.columns:
                raise DataError(f"{where}: no column {name!r}, which the training rows have")
        for name in table.columns:
            if name not in self.numbers and name not in self.texts:
                continue
            column = table[name]
            if is_number(column) != (name in self.numbers) and not column.isna().all():
                raise DataError(f"{where}: column {name!r} holds numbers in one file and text in another")
            missing = column.isna()
            if missing.any() and not self.fill_missing:
                row = int(missing.to_numpy().argmax()) + 2  # lines count from 1, and the first is the header
                raise DataError(
                    f"{where}: NaN or nothing in column {name!r}, line {row}: repair it, or have missing "
                    "values filled in"
                )
            if is_number(column) and column.abs().max() == float("inf"):
                raise DataError(f"{where}: infinite value in column {name!r}")

    def encode(self, table: pandas.DataFrame) -> torch.Tensor:
        """Rows [N, features]: standardised numbers, missing ones 0, then for each other column one column for
        missing values and one for each value."""
        import pandas

        values = table[list(self.numbers)].astype("float64")
        mean = pandas.Series({name: pair[0] for name, pair in self.numbers.items()}, dtype="float64")
        std = pandas.Series({name: pair[1] for name, pair in self.numbers.items()}, dtype="float64")
        numbers = ((values - mean) / std).fillna(0.0)[list(self.numbers)]
        parts = [torch.from_numpy(numbers.to_numpy("float32", copy=True))]
        for name, known in self.texts.items():
            column = table[name]
            codes = pandas.Index(known, dtype="object").get_indexer(
                column.astype(str)
            )  # -1 of unknown values
            ones = torch.nn.functional.one_hot(torch.from_numpy(codes.astype("int64")) + 1, len(known) + 1)
            ones[:, 0] = torch.from_numpy(column.isna().to_numpy("int64"))
            parts.append(ones.float())
        return torch.cat(parts, 1)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Encoding:
        """What :meth:`to_json` wrote into the file ``path``.

        Raises:
            DataError: it cannot be read.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            entries["numbers"] = {name: (mean, std) for name, (mean, std) in entries["numbers"].items()}
            return cls(**entries)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read: {first_line(error)}") from None


def is_number(column: pandas.Series) -> bool:
    """Whether ``column`` holds numbers, which truth values are not."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)


def read_table(path: Path, least_rows: int) -> pandas.DataFrame:
    """The CSV file ``path``.

    Raises:
        DataError: it cannot be read, or has fewer than ``least_rows`` rows, or pandas is missing.
    """
    try:
        import pandas
    except ImportError as error:
        raise DataError(f"tables need pandas (pip install pandas): {first_line(error)}") from None
    try:
        table = pandas.read_csv(path)
    except (OSError, ValueError) as error:  # parser and encoding errors are ValueErrors
        raise DataError(f"{path}: cannot be read as CSV: {first_line(error)}") from None
    if len(table) < least_rows:
        raise DataError(f"{path}: at least {least_rows} rows are needed, it has {len(table)}")
    return table
