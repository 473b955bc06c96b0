"""What the command line does besides training: the list of networks, predictions, comparisons of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyops.models.commands.catalog import FILE, catalog, listing
from pyops.models.commands.compare import compare
from pyops.models.commands.predict import predict
from pyops.models.data.images import read_image
from pyops.models.data.load import load_data
from pyops.models.errors import ModelsError
from pyops.models.training.finished_run import read_run
from typer.testing import CliRunner

from pyops import cli, models
from tests.suite.training import run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Finished runs by name: softmax regressions on digits, and others."""
    root = tmp_path_factory.mktemp("runs")
    short = {"network": "softmax_regression", "epochs": 4}
    configs = {
        "slow": {**short, "lr": 0.01},
        "fast": short,
        "logistic": {"network": "logistic_regression", "epochs": 2, "lr": None, "batch_size": None},
        "linear": {"network": "linear_regression", "epochs": 1, "lr": None, "batch_size": None},
    }
    for name, options in configs.items():
        run(root / name, **options)
    return {name: root / name for name in configs}


@pytest.fixture
def digits(tmp_path) -> Path:
    """A folder of test digits as PNG files, named by their true labels."""
    data = load_data("digits")
    folder = tmp_path / "digits"
    folder.mkdir()
    for i in range(30):
        pixels = (data.test_inputs[i, 0] * 255).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:02}-{int(data.test_targets[i])}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def invoke(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- generate


def test_text_is_written_from_a_prompt(tmp_path):
    """In one way for a seed; a low temperature writes what the model thinks likeliest."""
    (tmp_path / "text.txt").write_text("abcd" * 500)
    options = {"data_root": tmp_path / "text.txt", "options": {"width": 8}, "epochs": 60, "lr": 0.01}
    run(tmp_path / "run", "rnn", **options)
    arguments = ["generate", tmp_path / "run", "ab", "--length", 12, "--temperature", 0.01]
    assert invoke(*arguments).output == "abcdabcdabcdab\n"
    wild = [invoke(*arguments[:-1], 100, "--seed", seed).output for seed in (1, 1, 2)]
    assert wild[0] == wild[1] != wild[2]


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("linear", "a", "linear_regression on linear, which does not write text"),
        ("text", "", "the prompt is empty"),
        ("text", "xaé", "characters that the model has never read: x é"),
    ],
)
def test_generate_refuses(runs, tmp_path, name, prompt, message):
    from pyops.models.commands.generate import generate

    (tmp_path / "text.txt").write_text("abcd" * 500)
    if name == "text":
        folder = tmp_path / "run"
        run(folder, "rnn", data_root=tmp_path / "text.txt", options={"width": 64}, max_steps=1)
    else:
        folder = runs[name]
    with pytest.raises(ModelsError) as caught:
        generate(folder, prompt)
    assert message in one_line(caught)


# ---- list


def test_every_network_has_its_section_of_the_notes():
    assert all(models.get_network(name).notes for name in models.network_names())


def test_catalog_counts_parameters():
    entries = {entry.name: entry for entry in catalog()}
    assert sorted(entries) == models.network_names()
    assert entries["mlp"].parameters == 64 * 256 + 256 + 256 * 10 + 10
    assert entries["mlp"].notes_parameters == 784 * 256 + 256 + 256 * 10 + 10
    assert entries["lenet"].input_shape == (1, 28, 28)
    assert (entries["linear_regression"].parameters, entries["linear_regression"].data) == (3, "linear")
    assert entries["gru"].notes_parameters is None
    net = models.vgg11((1, 32, 32), 10, width=8)
    assert entries["vgg11"].parameters == sum(p.numel() for p in net.parameters())


def test_catalog_on_file_is_that_of_the_networks():
    """How many characters Python's own library has depends on its version."""
    text = {"gru", "lstm", "rnn"}
    here, on_file = json.loads(json.dumps(listing())), json.loads(FILE.read_text())
    for one, other in zip(here["networks"], on_file["networks"], strict=True):
        if one["name"] in text:
            assert one.pop("parameters") == pytest.approx(other.pop("parameters"), rel=0.2)
    assert here == on_file, "run `make stubs`"


def test_recipes_and_options_of_a_network_were_listed_nowhere():
    shown = invoke("list", "alexnet")
    assert shown.exit_code == 0
    rows = {row.split()[0]: row.split()[1:] for row in shown.stdout.splitlines() if row.strip()}
    assert rows["lr"] == ["0.01", "0.001"]  # of the notes, and on the digits
    assert rows["options"] == ["-", "width=4"]
    assert "--option width=1" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert json.loads(invoke("list", "alexnet", "--json").stdout)["recipes"]["digits"]["resize"] == 65
    wrong = invoke("list", "alexnett")
    assert wrong.exit_code == 2
    assert "alexnet" in wrong.output


def test_list_command():
    shown = invoke("list")
    assert shown.exit_code == 0
    assert "alexnet" in shown.stdout
    assert "46,764,746" in shown.stdout
    assert "himmelblau" in shown.stdout
    assert "fashion_mnist" in shown.stdout
    rows = json.loads(invoke("list", "--json").stdout)
    assert [row["name"] for row in rows] == models.network_names()


# ---- predict


def test_predict_labels_images(runs, digits):
    found = predict(runs["fast"], [digits])
    assert [one.path.name for one in found] == sorted(path.name for path in digits.glob("*.png"))
    right = sum(one.label == one.path.stem[-1] for one in found)
    assert right >= 27
    assert all(0.1 <= one.probability <= 1 for one in found)
    picture = runs["fast"] / "predicted.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    with Image.open(picture) as image:
        assert min(image.size) > 300


def test_predictions_are_the_networks_own(runs, digits):
    """The labels and probabilities of the same images read from the data set, but for 8 bits of a pixel."""
    data = load_data("digits")
    net = read_run(runs["fast"]).load_network()
    chances, labels = net(data.test_inputs[:30]).softmax(1).max(1)
    found = predict(runs["fast"], [digits])
    assert [int(one.label) for one in found] == labels.tolist()
    assert [one.probability for one in found] == pytest.approx(chances.tolist(), abs=0.02)


def test_images_are_resized_and_inverted(runs, digits, tmp_path):
    paper = tmp_path / "paper"
    paper.mkdir()
    for path in digits.glob("*.png"):
        with Image.open(path) as image:
            image.resize((40, 40)).point(lambda value: 255 - value).convert("RGB").save(paper / path.name)
    found = predict(runs["fast"], [paper], tmp_path / "new" / "p.png", invert=True)
    assert sum(one.label == one.path.stem[-1] for one in found) >= 27
    assert (tmp_path / "new" / "p.png").is_file()


def test_read_image(tmp_path):
    Image.new("RGB", (5, 3), (255, 0, 51)).save(tmp_path / "a.png")
    color = read_image(tmp_path / "a.png", 3)
    assert color.shape == (3, 3, 5)
    assert color[:, 1, 1].tolist() == pytest.approx([1, 0, 0.2])
    assert read_image(tmp_path / "a.png", 1, (6, 7)).shape == (1, 6, 7)
    Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", 1).flatten().tolist() == pytest.approx([0, 128 / 255, 1])


def test_predict_command(runs, digits):
    files = sorted(digits.glob("*.png"))[:3]
    result = invoke("predict", runs["fast"], "--images", *files)  # as a shell expands *.png
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in files]
    assert f"picture: {runs['fast'] / 'predicted.png'}" in result.stderr


@pytest.mark.parametrize("name", ["linear", "logistic"])
def test_predict_needs_an_image_classifier(runs, digits, name):
    with pytest.raises(ModelsError) as caught:
        predict(runs[name], [digits])
    assert "does not classify images" in one_line(caught)


def test_predict_refuses_bad_images(runs, digits, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.png"
    broken.write_bytes(next(digits.glob("*.png")).read_bytes()[:60])
    for images, message in (
        ([], "no images"),
        ([tmp_path / "empty"], "holds no images"),
        ([tmp_path / "missing.png"], "No such file"),
        ([digits / "notes.txt"], "not an image"),
        ([broken], "broken.png"),
    ):
        with pytest.raises(ModelsError, match=message) as caught:
            predict(runs["fast"], images)
        one_line(caught)


def test_predict_refuses_damaged_runs(runs, digits, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ModelsError, match="holds no finished run"):
        predict(run, [digits])
    shutil.copytree(runs["fast"], run)
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelsError, match="damaged file of weights") as caught:
        predict(run, [digits])
    one_line(caught)
    shutil.copy(runs["linear"] / "model.safetensors", run)
    with pytest.raises(ModelsError, match="does not fit softmax_regression") as caught:
        predict(run, [digits])
    one_line(caught)
    (run / "model.safetensors").unlink()
    with pytest.raises(ModelsError, match="does not exist"):
        predict(run, [digits])
    for text in ("{", "[]", "{}", '{"network": "mlp"}'):
        (run / "metrics.json").write_text(text)
        with pytest.raises(ModelsError) as caught:
            predict(run, [digits])
        one_line(caught)


# ---- compare


def test_compare(runs, tmp_path):
    found = compare([runs["slow"], runs["fast"]], tmp_path / "new" / "c.png")
    assert found.names == ["slow", "fast"]
    assert found.settings == {"lr": [0.01, 0.5]}
    assert found.results["test_accuracy"] == [
        read_run(runs[name]).metrics["test_accuracy"] for name in ("slow", "fast")
    ]
    with Image.open(tmp_path / "new" / "c.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(2**20)}
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= colors  # a curve of either run


def test_compare_draws_what_all_have(runs, tmp_path):
    found = compare([runs["fast"], runs["linear"]], tmp_path / "c.png")
    assert set(found.results) == {"train_loss", "test_loss", "samples_per_second"}
    same = compare([runs["fast"], runs["fast"]], tmp_path / "c.png")
    assert len(set(same.names)) == 2


def test_compare_command(runs, tmp_path):
    result = invoke("compare", runs["slow"], runs["fast"], "--output", tmp_path / "c.png")
    assert result.exit_code == 0
    assert "test_accuracy" in result.stdout
    assert (tmp_path / "c.png").is_file()


def test_compare_refuses(runs, tmp_path):
    with pytest.raises(ModelsError, match="at least two runs"):
        compare([runs["fast"]], tmp_path / "c.png")
    folds = tmp_path / "folds"
    folds.mkdir()
    (folds / "metrics.json").write_text('{"folds": 3}')
    with pytest.raises(ModelsError, match="fold-1"):
        compare([runs["fast"], folds], tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
