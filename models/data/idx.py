"""The IDX files of MNIST and Fashion-MNIST, from a folder that holds the four files of either under their
usual names, plain or gzipped. They are downloaded only when that is asked for.

IDX format (http://yann.lecun.com/exdb/mnist): big-endian int32 magic (0, 0, type 8 = uint8, number
of dimensions), one int32 per dimension, then the bytes in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import DataError, first_line
from .dataset import Dataset
from .download import fetch, md5_sum

DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_OFFICIAL_SIZES = {"train": 60_000, "t10k": 10_000}
#: MD5 sums of the published files, by data set and file name: Fashion-MNIST's are in its README, MNIST's in
#: the readers of torchvision and others.
MD5_SUMS = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}
#: Where these files are, by data set: each of the folders has all of them.
SOURCES = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
}


def idx_loader(
    name: str, folder: str, class_names: tuple[str, ...]
) -> Callable[[Path | None, bool], Dataset]:
    """A function that reads the data set ``name`` from a root folder, or from ``folder`` in it.

    It can be told to download what is missing, into the folder ``name`` in the root folder.
    """

    def load(root: Path | None, download: bool) -> Dataset:
        if root is None:
            raise DataError(f"{name} is read from files: give their folder as the data root")
        if not root.is_dir() and (root.exists() or not download):
            raise DataError(f"{name}: data root {str(root)!r} is not a folder")
        # The specific folders come first: a root that holds several sets must not mix them up.
        folders = (root / name, root / folder / "raw", root)
        if download:
            _fetch_missing(name, folders)
        parts = []
        for part in ("train", "t10k"):
            images_path = _find(name, f"{part}-images-idx3-ubyte", folders)
            labels_path = _find(name, f"{part}-labels-idx1-ubyte", folders)
            images, labels = read_idx(images_path, num_dims=3), read_idx(labels_path, num_dims=1)
            if len(images) == _OFFICIAL_SIZES[part]:
                _check_sum(name, images_path)
                _check_sum(name, labels_path)
            _check_pair(images, labels, images_path, labels_path, len(class_names))
            parts += [scaled(images, 255), labels.long()]
        train_inputs, train_targets, test_inputs, test_targets = parts
        return Dataset(name, train_inputs, train_targets, test_inputs, test_targets, class_names)

    return load


def scaled(images: torch.Tensor, largest: int) -> torch.Tensor:
    """[N, H, W] of 0..largest -> float32 [N, 1, H, W] of 0..1."""
    return images.to(torch.float32).div_(largest).unsqueeze(1)


def _find(name: str, stem: str, folders: tuple[Path, ...]) -> Path:
    for folder in folders:
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    looked = ", ".join(str(folder) for folder in folders)
    raise DataError(
        f"{name}: file {stem!r} (or {stem + '.gz'!r}) not found; looked in {looked}; it can be downloaded"
    )


def _fetch_missing(name: str, folders: tuple[Path, ...]) -> None:
    """Download the files that are in none of ``folders`` to the first of them."""
    for file_name, md5 in MD5_SUMS[name].items():
        names = (file_name, file_name.removesuffix(".gz"))
        if not any((folder / one).is_file() for folder in folders for one in names):
            fetch([source + file_name for source in SOURCES[name]], folders[0] / file_name, md5)


def _check_pair(
    images: torch.Tensor, labels: torch.Tensor, images_path: Path, labels_path: Path, classes: int
) -> None:
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels)} labels, but {images_path.name} has {len(images)} images"
        )
    if int(labels.max()) >= classes:
        raise DataError(f"{labels_path}: label {int(labels.max())}, expected 0 to {classes - 1}")


def _check_sum(name: str, path: Path) -> None:
    """Compare a gzipped file of the official size with the MD5 sum published with it.

    Sums are published for the gzipped files alone; a raw one is checked by its header and length.
    """
    if path.suffix != ".gz":
        return
    found = md5_sum(path.read_bytes())
    expected = MD5_SUMS[name][path.name]
    if found != expected:
        raise DataError(f"{path}: wrong checksum: MD5 {found}, the file of {name} has {expected}")


def read_idx(path: str | Path, num_dims: int) -> torch.Tensor:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in ``.gz``: uint8, num_dims-d.

    Raises:
        DataError: the file cannot be read, is damaged, is no uint8 IDX file of ``num_dims``
            dimensions, holds nothing, or fewer or more bytes than its header says.
    """
    path = Path(path)
    content = _read_bytes(path)
    header_size = 4 + 4 * num_dims
    if len(content) < header_size:
        raise DataError(f"{path}: truncated: {len(content)} bytes, the header has {header_size}")
    magic, *shape = struct.unpack(f">{1 + num_dims}I", content[:header_size])
    expected_magic = 0x0800 + num_dims
    if magic != expected_magic:
        raise DataError(
            f"{path}: wrong magic number {magic}, expected {expected_magic} "
            f"(uint8 values in {num_dims} dimension{'s' if num_dims > 1 else ''})"
        )
    expected_size = header_size + math.prod(shape)
    if len(content) != expected_size:
        fault = "truncated" if len(content) < expected_size else "too long"
        raise DataError(
            f"{path}: {fault}: {len(content)} bytes, its header (shape {shape}) asks for {expected_size}"
        )
    if len(content) == header_size:
        raise DataError(f"{path}: holds no values, shape {shape}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header_size).view(shape)


def _read_bytes(path: Path) -> bytearray:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return bytearray(file.read())
        return bytearray(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file: {first_line(error)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
