"""What runs draw beside curves and predictions, and that names of all sorts fit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from pyops.models.data.load import load_data
from pyops.models.training import class_pictures
from pyops.models.training.comparison_picture import comparison
from pyops.models.training.config import TrainConfig
from pyops.models.training.plots import Tile, font_families, save_curves, save_tiles, shortened
from pyops.models.training.train import train

from tests.suite.training import run


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into pictures, in its order."""
    written: list[str] = []
    draw = Axes.text

    def noted(self, x, y, s, *rest, **options):
        written.append(s)
        return draw(self, x, y, s, *rest, **options)

    monkeypatch.setattr(Axes, "text", noted)
    return written


def test_the_confusion_matrix_has_every_sample_once(tmp_path: Path, texts: list[str]) -> None:
    """Rows are the true classes; what is on the diagonal is right."""
    labels, predictions = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([0, 0, 2, 2, 2])
    class_pictures.save_confusion(tmp_path / "a.png", "title", labels, predictions, ("a", "b", "c"))
    assert texts == ["2", "1", "2"]
    assert Image.open(tmp_path / "a.png").width > 200


def test_what_is_drawn_depends_on_the_data(tmp_path: Path) -> None:
    run(tmp_path / "images", "softmax_regression", max_steps=2)
    run(tmp_path / "plane", "mlp", data="xor", batch_size=4, max_steps=2)
    run(tmp_path / "values", "linear_regression", lr=0.03, max_steps=2)
    drawn = {folder.name: {path.name for path in folder.glob("*.png")} for folder in tmp_path.iterdir()}
    assert drawn == {
        "images": {"curves.png", "predictions.png", "confusion.png"},
        "plane": {"curves.png", "confusion.png", "boundary.png"},
        "values": {"curves.png"},
    }


def test_the_boundary_is_where_the_classes_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(Axes, "contourf", lambda _, x, y, z, **__: drawn.append((x, y, z)))
    config = TrainConfig("mlp", data="xor", output=tmp_path, quiet=True)
    assert train(config)["test_accuracy"] == 1
    ((first, second, classes),) = drawn
    for row, label in zip(*(load_data("xor").test_inputs, load_data("xor").test_targets), strict=True):
        i, j = (int((axis - value).abs().argmin()) for axis, value in zip((first, second), row, strict=True))
        assert classes[j, i] == label


def test_folds_are_drawn_together(tmp_path: Path) -> None:
    metrics = run(tmp_path, "house_price", lr=0.5, folds=2, epochs=2)
    assert metrics["folds"] == 2
    assert Image.open(tmp_path / "folds.png").width > 200


def test_learned_parameters_are_told_where_they_are_few(tmp_path: Path, capsys) -> None:
    train(TrainConfig("linear_regression", output=tmp_path))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("learned")]
    words = line.replace(",", "").replace(";", "").split()
    assert words[1] == "weight"
    assert words[4] == "bias"
    assert [float(words[i]) for i in (2, 3, 5)] == pytest.approx([2, -3.4, 4.2], abs=0.01)
    train(TrainConfig("softmax_regression", max_steps=1, output=tmp_path / "more"))
    assert "\nlearned" not in capsys.readouterr().err


def test_a_learning_rate_that_changes_has_a_panel(tmp_path: Path) -> None:
    history = {"epoch": [1.0, 2.0], "train_loss": [2.0, 1.0], "test_loss": [2.0, 1.0]}
    widths = []
    for rates in ([0.1, 0.1], [0.1, 0.01]):
        save_curves(tmp_path / "a.png", "title", {**history, "lr": rates}, [1.0], {"loss": "loss"})
        widths.append(Image.open(tmp_path / "a.png").width)
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("sandal", "sandal"),
        ("golden retriever puppy", "golden … puppy"),
        ("金毛寻回犬", "金毛寻回犬"),
        ("金毛寻回犬的小狗狗", "金毛寻…小狗狗"),
    ],
)
def test_long_names_ran_into_their_neighbours(text: str, short: str) -> None:
    """A Chinese character is as wide as two others."""
    assert shortened(text) == short


def test_names_in_chinese_became_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fonts that are asked for are those that are installed."""
    from pyops.models.training import plots

    monkeypatch.setattr(plots, "get_font_names", lambda: ["DejaVu Sans", "SimHei"])
    assert font_families("狗") == ["sans-serif", "SimHei"]
    assert font_families("dog") == ["sans-serif"]


def test_one_picture_was_drawn_on_a_canvas_for_eight(tmp_path: Path) -> None:
    tile = Tile(torch.rand(1, 8, 8), "7\n7 (100%)")
    widths = []
    for count in (1, 6, 8):
        save_tiles(tmp_path / "a.png", "title", [tile] * count)
        widths.append(Image.open(tmp_path / "a.png").width)
    assert widths[0] == pytest.approx(widths[2] / 2, abs=1)
    assert widths[1] == pytest.approx(widths[2] * 6 / 8, abs=1)


def test_a_data_root_alone_names_the_kind_of_data(tmp_path: Path) -> None:
    """Image networks said that the digits read no files."""
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    assert TrainConfig("lenet", data_root=tmp_path).data_name == "images"
    assert TrainConfig("mlp", data_root=tmp_path / "a.csv").data_name == "csv"
    assert TrainConfig("house_price", data_root=tmp_path).data_name == "house_prices"
    assert TrainConfig("lstm", data_root=tmp_path / "a.txt").data_name == "text"
    assert TrainConfig("lenet", data="mnist", data_root=tmp_path).data_name == "mnist"
    assert TrainConfig("lenet").data_name == "digits"


def test_compare_hid_one_twin_under_the_other() -> None:
    history = {"epoch": [1, 2, 3], "test_loss": [3.0, 1.0, 0.5], "train_loss": [2.0, 1.0, 0.4]}
    figure = comparison({"ours": history, "theirs": history}, ["loss"], "test")
    figure.legends[0].remove()  # the runs' colours are there in any case
    for axes in figure.axes[2:]:
        axes.remove()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    with Image.open(picture) as image:
        counts = {color: number for number, color in image.convert("RGB").getcolors(2**20)}
    assert counts[0x1F, 0x77, 0xB4] > 500
    assert counts[0xFF, 0x7F, 0x0E] > 500


def test_differences_are_drawn_where_the_epochs_are_the_same() -> None:
    history = {"epoch": [1, 2], "test_loss": [3.0, 1.0], "train_loss": [2.0, 1.0]}
    other = {"epoch": [1, 2], "test_loss": [3.5, 1.25], "train_loss": [2.0, 1.0]}
    figure = comparison({"one": history, "two": other}, ["loss"], "test")
    assert len(figure.axes) == 3
    assert list(figure.axes[2].get_lines()[-1].get_ydata()) == [0.5, 0.25]
    assert figure.axes[2].get_ylabel() == "test loss\nminus that of one"
    shorter = {name: values[:1] for name, values in other.items()}
    assert len(comparison({"one": history, "two": shorter}, ["loss"], "test").axes) == 2
