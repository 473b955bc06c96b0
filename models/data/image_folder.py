"""A folder of pictures as a data set, with a subfolder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ..errors import DataError
from .dataset import Dataset
from .images import image_files, read_image
from .scikit_learn import split_by_class

_COLORLESS_MODES = ("1", "L", "LA", "I", "I;16")
_MOST_BYTES = 4 * 2**30


def load_image_folder(root: Path | None) -> Dataset:
    """Pictures ``root/train/CLASS/*`` and ``root/test/CLASS/*``, or ``root/CLASS/*``, split 80 : 20.

    They are read in gray if all files are gray, else in colour, and resized to the size of the first.

    Raises:
        DataError: no such folders, fewer than two classes, a file that is no picture, or too many pictures
            of this size.
    """
    if root is None or not root.is_dir():
        raise DataError(
            "images are read from a folder with a folder for each class: give it as the data root"
        )
    parts = [root / "train", root / "test"]
    if not all(part.is_dir() for part in parts):
        parts = [root]
    names = _class_names(parts[0])
    files = [[(path, i) for i, name in enumerate(names) for path in _pictures(part / name)] for part in parts]
    paths = [path for part in files for path, _ in part]
    channels, size = _form(paths)
    if len(paths) * channels * size[0] * size[1] * 4 > _MOST_BYTES:
        raise DataError(f"{root}: {len(paths)} pictures of {size[0]} x {size[1]} are too many for the memory")
    tensors = [_read(part, channels, size) for part in files]
    if len(tensors) == 2:
        (train_x, train_y), (test_x, test_y) = tensors
    else:
        inputs, labels = tensors[0]
        if int(labels.bincount().min()) < 2:
            raise DataError(f"{root}: a class needs at least two pictures, one of them for testing")
        train_x, test_x, train_y, test_y = split_by_class(inputs.numpy(), labels.numpy())
    return Dataset("images", train_x, train_y, test_x, test_y, names)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise DataError(
            f"{folder}: at least two folders, one for each class, are needed, it has {len(names)}"
        )
    return tuple(names)


def _pictures(folder: Path) -> list[Path]:
    paths = image_files(folder) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder}: holds no images")
    return paths


def _form(paths: Sequence[Path]) -> tuple[int, tuple[int, int]]:
    """Channels that all pictures have, and height and width of the first."""
    size, modes = (0, 0), set()
    for path in paths:
        try:
            with Image.open(path) as image:  # reads but the header
                modes.add(image.mode)
                size = size if size != (0, 0) else (image.height, image.width)
        except (OSError, ValueError, SyntaxError):
            raise DataError(f"{path}: not an image that can be read") from None
    return (1 if modes <= set(_COLORLESS_MODES) else 3), size


def _read(
    files: Sequence[tuple[Path, int]], channels: int, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([read_image(path, channels, size) for path, _ in files])
    return images, torch.tensor([label for _, label in files], dtype=torch.int64)
