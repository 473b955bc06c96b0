"""The data sets: digits, and the IDX files of MNIST with everything that can be wrong with them."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace

import pytest
import torch
from pyops.models import DataError
from pyops.models.data import dataset as dataset_module
from pyops.models.data.idx import read_idx
from pyops.models.data.load import data_names, load_data

STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(values: torch.Tensor) -> bytes:
    header = struct.pack(f">{1 + values.dim()}I", 0x0800 + values.dim(), *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


def make_mnist(folder, *, compress: bool = True):
    """Write a small random MNIST and return the four tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for stem, count in zip(STEMS, (20, 20, 8, 8), strict=True):
        if "images" in stem:
            values = torch.randint(0, 256, (count, 28, 28), generator=generator)
        else:
            values = torch.randint(0, 10, (count,), generator=generator)
        tensors.append(values)
        content = idx_bytes(values)
        name = f"{stem}.gz" if compress else stem
        (folder / name).write_bytes(gzip.compress(content) if compress else content)
    return tensors


def check_message(error: pytest.ExceptionInfo, *parts: str):
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_digits():
    data = load_data("digits")
    assert data.train_inputs.shape == (1437, 1, 8, 8)
    assert data.test_inputs.shape == (360, 1, 8, 8)
    assert data.input_shape == (1, 8, 8)
    assert data.num_outputs == 10
    for images, labels in (
        (data.train_inputs, data.train_targets),
        (data.test_inputs, data.test_targets),
    ):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert len(images) == len(labels)
        assert images.min() == 0
        assert images.max() == 1
        shares = labels.bincount(minlength=10) / len(labels)
        assert (shares - 0.1).abs().max() < 0.005


def test_digits_split_is_fixed_and_disjoint():
    first, second = load_data("digits"), load_data("digits")
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert torch.equal(first.test_targets, second.test_targets)
    seen = {tuple(image.flatten().tolist()) for image in first.train_inputs}
    # Two of the 1797 pictures could be equal by chance; a leak would be all 360.
    assert sum(tuple(image.flatten().tolist()) in seen for image in first.test_inputs) < 3


# ---- resizing


def test_resized_is_torchs_bilinear_interpolation():
    data = load_data("digits")
    large = data.resized(20)
    assert large.input_shape == (1, 20, 20)
    assert large.train_inputs.shape == (1437, 1, 20, 20)
    expected = torch.nn.functional.interpolate(
        data.test_inputs, (20, 20), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(large.test_inputs, expected, rtol=0, atol=1e-6)
    assert torch.equal(large.train_targets, data.train_targets)


def test_shrinking_averages():
    """Stripes one pixel wide turn grey; picking pixels would make them black, white, or wider."""
    stripes = (torch.arange(32) % 2).float().expand(1, 1, 32, 32)
    digits = load_data("digits")
    small = replace(digits, train_inputs=stripes).resized(4).train_inputs
    torch.testing.assert_close(small[..., 1:-1], torch.full((1, 1, 4, 2), 0.5), rtol=0, atol=0.05)


def test_resized_to_its_own_size_is_itself():
    data = load_data("digits")
    assert data.resized(None) is data
    assert data.resized(8) is data
    with pytest.raises(DataError, match="1 pixel or more, got 0"):
        data.resized(0)


def test_images_too_large_to_keep_are_resized_as_they_are_read(monkeypatch):
    data = load_data("digits")
    kept = data.resized(20)
    monkeypatch.setattr(dataset_module, "_RESIZED_BYTES", 2**20)
    read = data.resized(20)
    assert read.train_inputs is data.train_inputs
    assert read.input_shape == kept.input_shape
    index = torch.tensor([5, 2, 1000])
    for ours, expected in zip(read.train_batch(index), kept.train_batch(index), strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(torch.cat([images for images, _ in read.batches()]), kept.test_inputs)


@pytest.mark.parametrize(("side", "sizes"), [(8, [360]), (224, [20] * 18)])
def test_test_batches_fit_the_memory(side, sizes):
    data = load_data("digits").resized(side)
    batches = list(data.batches())
    assert [len(images) for images, _ in batches] == sizes
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.test_targets)


def test_digits_reads_no_files(tmp_path):
    with pytest.raises(DataError, match="reads no files"):
        load_data("digits", tmp_path)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("digit", "digits"), ("fashion-mnist", "fashion_mnist"), ("minst", "mnist")],
)
def test_unknown_data_suggests_the_nearest(name, nearest):
    with pytest.raises(DataError) as caught:
        load_data(name)
    check_message(caught, f"unknown data set {name!r}", f"did you mean '{nearest}'", *data_names())


@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("compress", [True, False], ids=["gz", "raw"])
def test_mnist(tmp_path, folder, compress):
    train_x, train_y, test_x, test_y = make_mnist(tmp_path / folder, compress=compress)
    data = load_data("mnist", tmp_path)
    assert data.train_inputs.shape == (20, 1, 28, 28)
    torch.testing.assert_close(data.train_inputs[:, 0], train_x / 255)
    torch.testing.assert_close(data.test_inputs[:, 0], test_x / 255)
    assert torch.equal(data.train_targets, train_y)
    assert torch.equal(data.test_targets, test_y)


def test_a_root_with_both_sets(tmp_path):
    make_mnist(tmp_path)
    fashion_x = make_mnist(tmp_path / "fashion_mnist")[0].flip(0)
    (tmp_path / "fashion_mnist" / f"{STEMS[0]}.gz").write_bytes(gzip.compress(idx_bytes(fashion_x)))
    data = load_data("fashion_mnist", tmp_path)
    torch.testing.assert_close(data.train_inputs[:, 0], fashion_x / 255)
    assert data.class_names[9] == "ankle boot"


def test_mnist_needs_a_root(tmp_path):
    with pytest.raises(DataError, match="mnist is read from files"):
        load_data("mnist")
    with pytest.raises(DataError, match="is not a folder"):
        load_data("mnist", tmp_path / "absent")


@pytest.mark.parametrize("stem", STEMS)
def test_missing_file(tmp_path, stem):
    make_mnist(tmp_path)
    (tmp_path / f"{stem}.gz").unlink()
    with pytest.raises(DataError) as caught:
        load_data("fashion_mnist", tmp_path)
    check_message(caught, stem, "not found", str(tmp_path))


@pytest.mark.parametrize("size", [0, 3, 15, 16, 1000])
def test_truncated(tmp_path, size):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(torch.zeros(4, 28, 28))[:size])
    with pytest.raises(DataError) as caught:
        read_idx(path, num_dims=3)
    check_message(caught, str(path), "truncated", f"{size} bytes")


def test_too_long(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(idx_bytes(torch.zeros(4)) + b"\0")
    with pytest.raises(DataError, match="too long: 13 bytes"):
        read_idx(path, num_dims=1)


def test_header_that_asks_for_the_moon(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"\0" * 9)
    with pytest.raises(DataError, match="truncated"):
        read_idx(path, num_dims=3)


def test_no_values(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(torch.zeros(0, 28, 28)))
    with pytest.raises(DataError, match="holds no values"):
        read_idx(path, num_dims=3)


@pytest.mark.parametrize("magic", [0, 0x0801, 0x0D03, 0x03080000])
def test_wrong_magic(tmp_path, magic):
    path = tmp_path / "images"
    path.write_bytes(struct.pack(">I", magic) + idx_bytes(torch.zeros(4, 28, 28))[4:])
    with pytest.raises(DataError) as caught:
        read_idx(path, num_dims=3)
    check_message(caught, f"wrong magic number {magic}", "expected 2051")


def test_targets_in_place_of_images(tmp_path):
    make_mnist(tmp_path)
    labels = (tmp_path / f"{STEMS[1]}.gz").read_bytes()
    (tmp_path / f"{STEMS[0]}.gz").write_bytes(labels)
    with pytest.raises(DataError, match=r"wrong magic number 2049, expected 2051|truncated"):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize("damage", ["no gzip", "cut short", "flipped", "empty"])
def test_damaged_gzip(tmp_path, damage):
    make_mnist(tmp_path)
    path = tmp_path / f"{STEMS[0]}.gz"
    content = bytearray(path.read_bytes())
    if damage == "no gzip":
        content = bytearray(b"<html>404 not found</html>")
    elif damage == "cut short":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray()
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data("mnist", tmp_path)
    check_message(caught, str(path))


def test_inputs_and_labels_must_match(tmp_path):
    make_mnist(tmp_path)
    path = tmp_path / f"{STEMS[1]}.gz"
    path.write_bytes(gzip.compress(idx_bytes(torch.zeros(19))))
    with pytest.raises(DataError, match=r"19 labels, but .* has 20 images"):
        load_data("mnist", tmp_path)


def test_label_out_of_range(tmp_path):
    make_mnist(tmp_path)
    path = tmp_path / f"{STEMS[3]}.gz"
    path.write_bytes(gzip.compress(idx_bytes(torch.tensor([0, 1, 2, 3, 4, 5, 6, 10]))))
    with pytest.raises(DataError, match="label 10, expected 0 to 9"):
        load_data("mnist", tmp_path)


def test_unreadable_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path, num_dims=1)
