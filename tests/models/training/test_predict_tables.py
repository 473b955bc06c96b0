"""`pyops predict RUN rows.csv`: predictions beside the rows of a table."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
import torch
from pyops.models.commands.predict import predict_table
from pyops.models.errors import DataError, NetworkError
from typer.testing import CliRunner

from pyops import cli
from tests.suite.training import run


def rows(number: int) -> pandas.DataFrame:
    """Numbers, text with gaps, and a price and a size that follow from them."""
    generator = torch.Generator().manual_seed(number)
    area = torch.rand(number, generator=generator).mul(100).round()
    zones = ["RL", None, "区"]
    table = pandas.DataFrame({"area": area, "zone": [zones[i % 3] for i in range(number)]})
    table["price"] = 3 * table["area"] + 40 + 20 * (table["zone"] == "RL")
    table["size"] = ["large" if value > 50 else "small" for value in table["area"]]
    return table


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    rows(200).to_csv(tmp_path / "houses.csv", index=False)
    return tmp_path / "houses.csv"


def trained(folder: Path, file: Path, network: str, target: str, **options) -> Path:
    run(folder, network, data="csv", data_root=file, target=target, fill_missing=True, **options)
    return folder


def test_values_stand_beside_their_rows(tmp_path: Path, train_file: Path) -> None:
    folder = trained(tmp_path / "run", train_file, "linear_regression", "price", lr=0.05, epochs=30)
    train_file.unlink()  # the run knows all that is needed
    new = rows(9).drop(columns="price")
    new["name"] = [f"house {i}" for i in range(9)]  # of no meaning to the network
    new.to_csv(tmp_path / "new.csv", index=False)
    path = predict_table(folder, tmp_path / "new.csv")
    assert path == folder / "predicted.csv"
    found = pandas.read_csv(path)
    assert list(found.columns) == [*new.columns, "predicted_price"]
    pandas.testing.assert_frame_equal(found[new.columns], pandas.read_csv(tmp_path / "new.csv"))
    assert found["predicted_price"].to_numpy() == pytest.approx(rows(9)["price"].to_numpy(), abs=10)


def test_classes_have_a_probability(tmp_path: Path, train_file: Path) -> None:
    folder = trained(tmp_path / "run", train_file, "softmax_regression", "size", epochs=10)
    rows(30).to_csv(tmp_path / "new.csv", index=False)
    answer = CliRunner().invoke(
        cli.app, ["predict", str(folder), str(tmp_path / "new.csv"), "--output", str(tmp_path / "out.csv")]
    )
    assert answer.exit_code == 0, answer.output
    found = pandas.read_csv(tmp_path / "out.csv")
    assert (found["predicted_size"] == rows(30)["size"]).mean() > 0.9
    assert found["probability"].between(0.5, 1).all()


def test_tables_that_do_not_fit_are_refused(tmp_path: Path, train_file: Path) -> None:
    folder = trained(tmp_path / "run", train_file, "linear_regression", "price", max_steps=1, lr=0.05)
    new = tmp_path / "new.csv"
    rows(3).drop(columns="zone").to_csv(new, index=False)
    with pytest.raises(DataError, match=r"new\.csv: no column 'zone', which the training rows have"):
        predict_table(folder, new)
    rows(3).assign(area="wide").to_csv(new, index=False)
    with pytest.raises(DataError, match=r"new\.csv: column 'area' holds numbers in one file and text"):
        predict_table(folder, new)
    assert not (folder / "predicted.csv").exists()
    (folder / "columns.json").write_text("{}")
    with pytest.raises(DataError, match=r"columns\.json: cannot be read"):
        predict_table(folder, new)
    (folder / "columns.json").unlink()
    with pytest.raises(NetworkError, match="was not trained on a CSV table"):
        predict_table(folder, new)
