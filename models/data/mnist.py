"""MNIST and Fashion-MNIST, from a folder that holds the four IDX files of either under their usual names.

The files are plain or gzipped. They are downloaded only when that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import DataError
from .dataset import Dataset
from .download import fetch, md5_sum
from .idx import read_idx
from .images import scaled

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


def mnist_loader(
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
