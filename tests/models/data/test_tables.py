"""CSV tables: what their columns become, Kaggle's house prices, and tables that are refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from pyops.models.data.load import load_data
from pyops.models.errors import DataError, ModelsError
from typer.testing import CliRunner

from pyops import cli
from tests.suite import training


def houses(rows: int, seed: int) -> pandas.DataFrame:
    """A table in the form of Kaggle's: numbers, text, both with gaps, and a price that they decide."""
    draw = np.random.default_rng(seed)
    area, year = draw.normal(1500, 400, rows), draw.integers(1900, 2010, rows)
    zone, alley = draw.choice(["RL", "RM", "FV"], rows), draw.choice(["Grvl", "Pave", None], rows)
    price = 60 * area + 400 * (year - 1900) + 20_000 * (zone == "RL") + 30_000
    table = pandas.DataFrame(
        {"Id": range(1, rows + 1), "LotArea": area, "YearBuilt": year, "Zoning": zone, "Alley": alley}
    )
    table.loc[draw.choice(rows, rows // 10, replace=False), "LotArea"] = float("nan")
    return table.assign(SalePrice=price.clip(20_000).round())


@pytest.fixture
def kaggle(tmp_path) -> Path:
    """A folder with train.csv of 300 houses, and test.csv of 40 without their prices."""
    folder = tmp_path / "kaggle"
    folder.mkdir()
    houses(300, 0).to_csv(folder / "train.csv", index=False, na_rep="NA")
    table = houses(40, 1).drop(columns="SalePrice")
    table.assign(Id=range(1461, 1501)).to_csv(folder / "test.csv", index=False, na_rep="NA")
    return folder


def run(output: Path, **options) -> dict:
    return training.run(output, "house_price", **{"lr": None, "batch_size": None, **options})


# ---- house prices


def test_columns_become_what_the_notes_make_of_them(kaggle):
    """The notes' own pipeline of pandas, on the rows that are the training part here."""
    data = load_data("house_prices", kaggle)
    table = pandas.read_csv(kaggle / "train.csv")
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    part = table.iloc[order[60:].numpy()]
    numbers = part[["LotArea", "YearBuilt"]]
    numbers = ((numbers - numbers.mean()) / numbers.std(ddof=0)).fillna(0)
    dummies = pandas.get_dummies(part[["Zoning", "Alley"]], dummy_na=True)
    names = ["Zoning_nan", "Zoning_FV", "Zoning_RL", "Zoning_RM", "Alley_nan", "Alley_Grvl", "Alley_Pave"]
    expected = np.concatenate([numbers.to_numpy(), dummies[names].to_numpy(float)], 1)
    assert data.input_shape == (9,)
    np.testing.assert_allclose(data.train_inputs.numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(data.train_targets[:, 0].numpy(), part["SalePrice"].to_numpy())
    assert (len(data.train_targets), len(data.test_targets)) == (240, 60)


def test_house_prices_of_kaggle(kaggle, tmp_path):
    metrics = run(tmp_path / "run", data_root=kaggle, lr=900.0, epochs=20)
    assert metrics["data"] == "house_prices"  # as there is a data root
    history = metrics["history"]["test_log_rmse"]
    assert history[-1] == metrics["test_log_rmse"]
    assert history[-1] < 0.2 < history[0]
    with (tmp_path / "run" / "submission.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["Id", "SalePrice"]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(1461, 1501)]
    prices = houses(40, 1)["SalePrice"].to_numpy()
    errors = np.log([float(row[1]) for row in rows[1:]]) - np.log(prices)
    assert math.sqrt((errors**2).mean()) < 0.3


def test_log_rmse_is_that_of_the_notes(kaggle, tmp_path):
    """sqrt(mean((log max(prediction, 1) - log price)^2)) over the rows, not a mean over batches."""
    import safetensors.torch

    metrics = run(tmp_path / "run", data_root=kaggle, epochs=3)
    weights = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    data = load_data("house_prices", kaggle)
    predictions = data.test_inputs @ weights["1.weight"].T + weights["1.bias"]
    errors = predictions.clamp(1).log() - data.test_targets.log()
    assert metrics["test_log_rmse"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5)


def test_house_price_folds_on_the_embedded_default(tmp_path, capsys):
    summary = run(tmp_path, folds=2, epochs=20, lr=5.0, quiet=False)
    assert summary["data"] == "diabetes"
    assert summary["validation_log_rmse"] < 0.5
    assert 0 < summary["validation_log_rmse_std"] < 0.2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("2 folds: validation log rmse 0.")
    assert json.loads((tmp_path / "fold-2" / "metrics.json").read_text())["validation_log_rmse"] > 0


def test_prices_are_above_0(kaggle, tmp_path):
    table = pandas.read_csv(kaggle / "train.csv")
    table.loc[7, "SalePrice"] = 0
    table.to_csv(kaggle / "train.csv", index=False)
    with pytest.raises(ModelsError, match="house_price predicts values above 0, but house_prices has 0"):
        run(tmp_path / "run", data_root=kaggle)


# ---- any table


@pytest.fixture
def flowers(tmp_path) -> Path:
    """Two kinds of flowers, told apart by a number and a colour."""
    draw = np.random.default_rng(0)
    kind = draw.choice(["iris", "lily"], 120)
    length = draw.normal(0, 1, 120) + 3 * (kind == "iris")
    color = np.where(draw.random(120) < 0.1, "white", np.where(kind == "iris", "blue", "red"))
    path = tmp_path / "flowers.csv"
    pandas.DataFrame({"kind": kind, "length": length, "color": color}).to_csv(path, index=False)
    return path


def test_text_targets_are_classes(flowers, tmp_path):
    data = load_data("csv", flowers, target="kind")
    assert data.class_names == ("iris", "lily")
    assert data.train_targets.dtype == torch.int64
    assert data.input_shape == (1 + 4,)
    for network in ("logistic_regression", "mlp"):
        options = {"data": "csv", "data_root": flowers, "target": "kind", "epochs": 20, "batch_size": 16}
        metrics = training.run(tmp_path / network, network, **options)
        assert metrics["test_accuracy"] > 0.9
        assert (metrics["data"], metrics["target"]) == ("csv", "kind")


def test_the_last_column_is_the_default_target(flowers):
    assert load_data("csv", flowers).class_names == ("blue", "red", "white")
    assert load_data("csv", flowers, target="length").class_names == ()


def test_labelled_test_file_is_the_test_part(flowers, tmp_path):
    table = pandas.read_csv(flowers)
    table[:100].to_csv(tmp_path / "train.csv", index=False)
    table[100:].to_csv(tmp_path / "test.csv", index=False)
    data = load_data("csv", tmp_path, target="kind")
    assert (len(data.train_targets), len(data.test_targets), data.unlabelled) == (100, 20, None)
    mean, std = table["length"][:100].mean(), table["length"][:100].std(ddof=0)
    expected = ((table["length"][100:] - mean) / std).to_numpy()
    np.testing.assert_allclose(data.test_inputs[:, 0].numpy(), expected, atol=1e-5)


def test_values_unknown_to_the_training_rows_are_no_value(flowers, tmp_path):
    table = pandas.read_csv(flowers)
    table[:100].to_csv(tmp_path / "train.csv", index=False)
    table[100:].assign(color="green").to_csv(tmp_path / "test.csv", index=False)
    data = load_data("csv", tmp_path, target="kind")
    assert not data.test_inputs[:, 1:].any()


def test_missing_values_are_filled_in_when_asked(flowers):
    table = pandas.read_csv(flowers)
    table.loc[3, "length"] = float("nan")
    table.loc[4, "color"] = None
    table.to_csv(flowers, index=False)
    with pytest.raises(DataError, match=r"NaN or nothing in column 'length', line 5"):
        load_data("csv", flowers, target="kind")
    data = load_data("csv", flowers, target="kind", fill_missing=True)
    inputs = torch.cat([data.train_inputs, data.test_inputs])
    assert inputs.isfinite().all()
    assert (inputs[:, 0] == 0).sum() == 1
    assert inputs[:, 1].sum() == 1  # the column of what is missing


def _altered(flowers: Path, how: str) -> Path:
    table = pandas.read_csv(flowers)
    if how == "infinite":
        table.loc[3, "length"] = float("inf")
    elif how == "no target value":
        table.loc[3, "kind"] = None
    elif how == "names":
        table["color"] = [f"flower {i}" for i in range(len(table))]
        table = pandas.concat([table.assign(color=table["color"] + str(k)) for k in range(10)])
    elif how == "short":
        table = table[:3]
    table.to_csv(flowers, index=False)
    return flowers


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("infinite", "infinite value in column 'length'"),
        ("no target value", "target column 'kind' lacks 1 values"),
        ("names", "text with 1200 different values"),
        ("short", "at least 5 rows and 2 columns are needed, it has 3 and 3"),
    ],
)
def test_bad_tables(flowers, how, message):
    with pytest.raises(DataError) as caught:
        load_data("csv", _altered(flowers, how), target="kind")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"1,2\n', b"a,b\n1,2\n1,2,3,4\n"])
def test_files_that_are_no_csv(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data("csv", path)
    assert "\n" not in str(caught.value)


def test_the_test_file_must_fit(kaggle):
    table = pandas.read_csv(kaggle / "test.csv")
    table.drop(columns="Zoning").to_csv(kaggle / "test.csv", index=False)
    with pytest.raises(DataError, match=r"test\.csv: no column 'Zoning'"):
        load_data("house_prices", kaggle)
    table.assign(LotArea="large").to_csv(kaggle / "test.csv", index=False)
    with pytest.raises(DataError, match="numbers in one file and text in another"):
        load_data("house_prices", kaggle)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["house_price", "--data", "house_prices"], "give their folder"),
        (["house_price", "--data-root", "."], "train.csv does not exist"),
        (["house_price", "--data", "csv"], "csv is read from a file"),
        (["mlp", "--target", "digit"], "digits is no CSV table"),
        (["mlp", "--data", "csv", "--data-root", "{table}", "--target", "kinds"], "did you mean 'kind'"),
        (["house_price", "--data", "csv", "--data-root", "{table}"], "predicts values, but csv has classes"),
    ],
)
def test_command_line_mistakes(flowers, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.format(table=flowers) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["pyops", "train", *arguments, "--output", "new"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_command_line(kaggle, tmp_path):
    arguments = ["train", "house_price", "--data-root", str(kaggle), "--epochs", "2", "--quiet"]
    assert CliRunner().invoke(cli.app, [*arguments, "--output", str(tmp_path / "run")]).exit_code == 0
    assert (tmp_path / "run" / "submission.csv").is_file()
