"""Images as tensors, and the files they are read from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..errors import DataError, first_line

#: Suffixes of the files that count as images in a folder.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(path: Path, channels: int, size: tuple[int, int] | None = None) -> torch.Tensor:
    """An image as float32 in [0, 1], [channels, H, W]: gray for one channel, RGB for three.

    ``size`` (height, width) resizes it, bilinear and averaging where it shrinks.

    Raises:
        DataError: the file is no image, or the network takes neither gray nor colour.
    """
    if channels not in (1, 3):
        raise DataError(f"{path}: images have 1 or 3 channels, the network takes {channels}")
    try:
        with Image.open(path) as file:
            image = _eight_bits(file).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None
    if size is not None and size != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).div_(255)
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image) -> Image.Image:
    """``image`` with gray pixels of 16 bits scaled to 8: a conversion would clip them at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().astype(np.uint8))


def image_files(folder: Path) -> list[Path]:
    """The image files in ``folder``, not in folders within it, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())


def scaled(images: torch.Tensor, largest: int) -> torch.Tensor:
    """[N, H, W] of 0..largest -> float32 [N, 1, H, W] of 0..1."""
    return images.to(torch.float32).div_(largest).unsqueeze(1)
