"""Image data sets as tensors: scikit-learn's digits, and MNIST files in the IDX format.

``digits`` needs no files. ``mnist`` and ``fashion_mnist`` are read from a folder that holds the
four files of either under their usual names, plain or gzipped; nothing is downloaded.

IDX format (http://yann.lecun.com/exdb/mnist): big-endian int32 magic (0, 0, type 8 = uint8, number
of dimensions), one int32 per dimension, then the bytes in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from .errors import DataError, first_line, unknown_name
from .text import TextData, load_text

_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
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

_RESIZED_BYTES = 2**30
_EVALUATION_PIXELS = 2**20


@dataclass(frozen=True)
class ImageData:
    """A labelled image data set, split in two.

    Images are float32 in [0, 1] of shape [N, C, H, W], labels int64 of shape [N]. ``side`` is set where they
    are resized as they are read (:meth:`resized`): read them through :meth:`train_batch` and
    :meth:`test_batches`.
    """

    task: ClassVar[str] = "images"

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    class_names: tuple[str, ...]
    side: int | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images as they are read."""
        channels, *size = self.train_images.shape[1:]
        return (channels, *(size if self.side is None else (self.side, self.side)))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def resized(self, side: int | None) -> ImageData:
        """The same data with square images of ``side`` pixels; None leaves them as they are.

        They are resized here and now where the result takes little memory (a network sees every image many
        times), and otherwise a batch at a time, on the device that holds them: next to a training step on
        images so large that is nothing, and a GPU does it while the host prepares the next step.

        Raises:
            DataError: ``side`` is not positive.
        """
        if side is None or self.image_shape[1:] == (side, side):
            return self
        if side < 1:
            raise DataError(f"{self.name}: images can be resized to 1 pixel or more, got {side}")
        number = len(self.train_images) + len(self.test_images)
        if number * self.image_shape[0] * side**2 * 4 > _RESIZED_BYTES:
            return replace(self, side=side)
        return replace(
            self,
            train_images=_resize(self.train_images, side),
            test_images=_resize(self.test_images, side),
        )

    def train_batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Training images [B, C, H, W] and labels [B] by their numbers, int64 [B]."""
        return self._read(self.train_images[index]), self.train_labels[index]

    def test_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Test images and labels in order, in batches whose activations need not much memory."""
        height, width = self.image_shape[1:]
        size = max(1, min(1024, _EVALUATION_PIXELS // (height * width)))
        for images, labels in zip(self.test_images.split(size), self.test_labels.split(size), strict=True):
            yield self._read(images), labels

    def _read(self, images: torch.Tensor) -> torch.Tensor:
        return images if self.side is None else _resize(images, self.side)

    def to(self, device: torch.device) -> ImageData:
        """The same data with all tensors on ``device``."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )


def _resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images [N, C, H, W] as [N, C, side, side], bilinear, averaging where they shrink."""
    return nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)


def load_data(name: str, root: str | Path | None = None) -> ImageData | TextData:
    """Load the data set called ``name``; ``root`` is the folder of its files, or its file, where it has any.

    Raises:
        DataError: unknown name (the nearest are suggested), a file missing, truncated or damaged,
            or a root given to a data set that reads no files.
    """
    if name not in _LOADERS:
        raise DataError(unknown_name("data set", name, _LOADERS))
    return _LOADERS[name](None if root is None else Path(root))


def data_names() -> list[str]:
    """Names that :func:`load_data` knows."""
    return sorted(_LOADERS)


def _load_digits(root: Path | None) -> ImageData:
    """1797 handwritten digits of 8 x 8 pixels (UCI Optical Recognition, test part), 80 : 20."""
    if root is not None:
        raise DataError("digits is part of scikit-learn and reads no files: leave out the data root")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError(
            f"digits needs scikit-learn (pip install scikit-learn): {first_line(error)}"
        ) from None
    digits = load_digits()
    # Part of the data set's definition, not a run's seed: every run is tested on the same images.
    split = train_test_split(
        digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in split)
    return ImageData(
        "digits",
        _scaled(train_x, 16),
        train_y.long(),
        _scaled(test_x, 16),
        test_y.long(),
        _DIGIT_NAMES,
    )


def _load_idx(name: str, folder: str, class_names: tuple[str, ...]) -> Callable[..., ImageData]:
    def load(root: Path | None) -> ImageData:
        if root is None:
            raise DataError(f"{name} is read from files: give their folder as the data root")
        if not root.is_dir():
            raise DataError(f"{name}: data root {str(root)!r} is not a folder")
        # The specific folders come first: a root that holds several sets must not mix them up.
        folders = (root / name, root / folder / "raw", root)
        parts = []
        for part in ("train", "t10k"):
            images_path = _find(name, f"{part}-images-idx3-ubyte", folders)
            labels_path = _find(name, f"{part}-labels-idx1-ubyte", folders)
            images, labels = read_idx(images_path, num_dims=3), read_idx(labels_path, num_dims=1)
            _check_pair(images, labels, images_path, labels_path, len(class_names))
            parts += [_scaled(images, 255), labels.long()]
        train_images, train_labels, test_images, test_labels = parts
        return ImageData(name, train_images, train_labels, test_images, test_labels, class_names)

    return load


def _scaled(images: torch.Tensor, largest: int) -> torch.Tensor:
    """[N, H, W] of 0..largest -> float32 [N, 1, H, W] of 0..1."""
    return images.to(torch.float32).div_(largest).unsqueeze(1)


def _find(name: str, stem: str, folders: tuple[Path, ...]) -> Path:
    for folder in folders:
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    looked = ", ".join(str(folder) for folder in folders)
    raise DataError(f"{name}: file {stem!r} (or {stem + '.gz'!r}) not found; looked in {looked}")


def _check_pair(
    images: torch.Tensor, labels: torch.Tensor, images_path: Path, labels_path: Path, classes: int
) -> None:
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels)} labels, but {images_path.name} has {len(images)} images"
        )
    if int(labels.max()) >= classes:
        raise DataError(f"{labels_path}: label {int(labels.max())}, expected 0 to {classes - 1}")


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


_LOADERS: dict[str, Callable[[Path | None], ImageData | TextData]] = {
    "digits": _load_digits,
    "mnist": _load_idx("mnist", "MNIST", _DIGIT_NAMES),
    "fashion_mnist": _load_idx("fashion_mnist", "FashionMNIST", _FASHION_NAMES),
    "text": load_text,
}
