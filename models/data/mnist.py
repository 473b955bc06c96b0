"""MNIST and Fashion-MNIST, from a folder that holds the four IDX files of either under their usual names.

The files are plain or gzipped. They are downloaded only when that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import DataError
from .dataset import Dataset
from .download import fetch, sha256_sum
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
#: SHA-256 sums of the published files, by data set and file name. The MD5 sums that are published with them
#: would not tell a forged file, and one of the sources is plain HTTP.
SHA256_SUMS = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
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
    for file_name, sha256 in SHA256_SUMS[name].items():
        names = (file_name, file_name.removesuffix(".gz"))
        if not any((folder / one).is_file() for folder in folders for one in names):
            fetch([source + file_name for source in SOURCES[name]], folders[0] / file_name, sha256)


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
    """Compare a gzipped file of the official size with the SHA-256 sum of the published one.

    Sums are published for the gzipped files alone; a raw one is checked by its header and length.
    """
    if path.suffix != ".gz":
        return
    found = sha256_sum(path.read_bytes())
    expected = SHA256_SUMS[name][path.name]
    if found != expected:
        raise DataError(f"{path}: wrong checksum: SHA-256 {found}, the file of {name} has {expected}")
