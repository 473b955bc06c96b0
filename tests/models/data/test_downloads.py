"""Data sets of files that are fetched or found in folders: IDX downloads, checksums, folders of images."""

from __future__ import annotations

import gzip
import http.server
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyops.models.data import download, mnist
from pyops.models.data.download import fetch, sha256_sum
from pyops.models.data.load import load_data
from pyops.models.errors import DataError

from tests.suite.training import run


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0)


def mnist_files(samples: int = 12) -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    files = {}
    for part, number in (("train", samples), ("t10k", 4)):
        files[f"{part}-images-idx3-ubyte.gz"] = idx_bytes(draw.integers(0, 256, (number, 4, 4)))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx_bytes(np.arange(number) % 10)
    return files


class Server:
    """Answers with ``files``, but to the first requests with what ``faults`` says, one after another."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.faults, self.requests = files, [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                fault = outer.faults.pop(0) if outer.faults else None
                content = outer.files.get(self.path.removeprefix("/"))
                if content is None or fault == "error":
                    self.send_error(404 if content is None else 503)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(b"x" * len(content) if fault == "garbage" else content)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    """A server of a small MNIST that the reader takes for the public one."""
    server = Server(mnist_files())
    monkeypatch.setattr(download, "_FIRST_PAUSE", 0.0)
    monkeypatch.setitem(mnist.SOURCES, "mnist", (server.url,))
    monkeypatch.setitem(mnist.SHA256_SUMS, "mnist", {name: sha256_sum(c) for name, c in server.files.items()})
    yield server
    server.http.shutdown()


# ---- downloads


def test_missing_files_are_downloaded_once(server, tmp_path):
    data = load_data("mnist", tmp_path / "new", download=True)
    assert (data.input_shape, len(data.train_targets)) == ((1, 4, 4), 12)
    assert sorted(path.name for path in (tmp_path / "new" / "mnist").iterdir()) == sorted(server.files)
    assert len(server.requests) == 4
    again = load_data("mnist", tmp_path / "new", download=True)
    assert len(server.requests) == 4
    assert torch.equal(again.train_inputs, data.train_inputs)
    metrics = run(tmp_path / "r", "softmax_regression", data="mnist", data_root=tmp_path / "new", epochs=1)
    assert metrics["train_samples"] == 12


def test_only_what_is_missing_is_downloaded(server, tmp_path):
    name = "train-images-idx3-ubyte"
    (tmp_path / name).write_bytes(gzip.decompress(server.files[f"{name}.gz"]))
    load_data("mnist", tmp_path, download=True)
    assert f"/{name}.gz" not in server.requests


@pytest.mark.parametrize("fault", ["error", "garbage"])
def test_failures_are_tried_again(server, tmp_path, fault):
    server.faults = [fault, fault]
    load_data("mnist", tmp_path, download=True)
    assert len(server.requests) == 6
    assert not list(tmp_path.glob("**/.*"))


def test_the_next_source_is_tried(server, tmp_path, monkeypatch):
    monkeypatch.setitem(mnist.SOURCES, "mnist", ("http://127.0.0.1:9/", server.url))
    load_data("mnist", tmp_path, download=True)
    assert len(server.requests) == 4


@pytest.mark.parametrize("fault", ["error", "garbage"])
def test_nothing_is_written_where_all_attempts_fail(server, tmp_path, fault):
    server.faults = [fault] * 4
    with pytest.raises(DataError) as caught:
        load_data("mnist", tmp_path / "new", download=True)
    expected = "Service Unavailable" if fault == "error" else "wrong checksum"
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_download_that_breaks_off_is_no_file(tmp_path, monkeypatch):
    server = Server({"file": b"a" * 1000})
    monkeypatch.setattr(download, "_FIRST_PAUSE", 0.0)
    original = http.server.BaseHTTPRequestHandler.send_header
    longer = lambda self, key, value: original(self, key, "2000" if key == "Content-Length" else value)  # noqa: E731
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "send_header", longer)
    with pytest.raises(DataError, match="IncompleteRead"):
        fetch([server.url + "file"], tmp_path / "file", sha256_sum(b"a" * 1000))
    assert not list(tmp_path.iterdir())
    server.http.shutdown()


def test_download_is_for_public_data(tmp_path):
    with pytest.raises(DataError, match="digits is not downloaded"):
        load_data("digits", download=True)
    with pytest.raises(DataError, match="it can be downloaded"):
        load_data("mnist", tmp_path)


def test_wrong_checksum_of_an_official_file(tmp_path):
    """60000 images make it the official file, whose sum it has not."""
    for name, values in (
        ("train-images-idx3-ubyte.gz", np.zeros((60_000, 1, 1))),
        ("train-labels-idx1-ubyte.gz", np.zeros(60_000)),
    ):
        (tmp_path / name).write_bytes(idx_bytes(values))
    with pytest.raises(DataError, match=r"train-images.*wrong checksum: SHA-256 .*440fcabf73cc546fa214"):
        load_data("mnist", tmp_path)


# ---- folders of images


def pictures(folder: Path, mode: str, colors: dict[str, tuple[int, int, int]], number: int) -> None:
    """Noisy pictures of one colour per class, of 6 x 5 pixels (width x height)."""
    draw = np.random.default_rng(len(folder.parts))
    for name, color in colors.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = np.clip(np.array(color) + draw.normal(0, 20, (5, 6, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")


COLORS = {"dark": (40, 40, 40), "light": (220, 220, 220)}


def test_gray_pictures_in_class_folders(tmp_path):
    pictures(tmp_path, "L", COLORS, 20)
    (tmp_path / "readme.txt").write_text("pictures")
    data = load_data("images", tmp_path)
    assert data.class_names == ("dark", "light")
    assert data.input_shape == (1, 5, 6)
    assert (len(data.train_targets), len(data.test_targets)) == (32, 8)
    assert data.test_targets.bincount().tolist() == [4, 4]
    means = data.train_inputs.mean((1, 2, 3))
    assert torch.equal(means > 0.5, data.train_targets == 1)
    options = {"data": "images", "data_root": tmp_path, "epochs": 20, "batch_size": 8}
    metrics = run(tmp_path / "run", "softmax_regression", **options)
    assert metrics["test_accuracy"] == 1.0
    assert metrics["class_names"] == ["dark", "light"]
    assert (tmp_path / "run" / "predictions.png").is_file()


def test_colour_pictures_with_a_test_folder(tmp_path):
    colors = {"blue": (0, 0, 255), "red": (255, 0, 0)}
    pictures(tmp_path / "train", "RGB", colors, 5)
    pictures(tmp_path / "test", "RGB", colors, 2)
    Image.new("RGB", (20, 30), (255, 0, 0)).save(tmp_path / "test" / "red" / "large.png")
    data = load_data("images", tmp_path)
    assert data.input_shape == (3, 5, 6)
    assert (len(data.train_targets), len(data.test_targets)) == (10, 5)
    assert torch.equal(data.test_inputs[:, 0].mean((1, 2)) > 0.5, data.test_targets == 1)


def test_bad_image_folders(tmp_path):
    one = tmp_path / "one"
    pictures(one, "L", {"dark": (0, 0, 0)}, 3)
    few = tmp_path / "few"
    pictures(few, "L", COLORS, 1)
    broken = tmp_path / "broken"
    pictures(broken, "L", COLORS, 3)
    (broken / "dark" / "0.png").write_bytes(b"no picture")
    empty = tmp_path / "empty"
    pictures(empty, "L", COLORS, 3)
    (empty / "third").mkdir()
    for root, message in (
        (None, "a folder for each class"),
        (tmp_path / "none", "a folder for each class"),
        (one, "at least two folders"),
        (few, "a class needs at least two pictures"),
        (broken, "not an image that can be read"),
        (empty, "holds no images"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            load_data("images", root)
        assert "\n" not in str(caught.value)
