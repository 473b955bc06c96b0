"""Text as a data set of characters: windows of it, each with the characters that follow.

``text`` is a file of yours, given as the data root, or without one the source text of some modules of
Python's standard library: nearly a megabyte that is always there.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from .errors import DataError, first_line

#: Characters that a network reads, and predicts, at a time.
STEPS = 35

_MODULES = (
    "argparse", "ast", "bisect", "calendar", "configparser", "csv", "dataclasses", "difflib", "enum",
    "fractions", "functools", "heapq", "inspect", "random", "shutil", "statistics", "string", "textwrap",
    "tokenize",
)  # fmt: skip
_TEST_SHARE = 0.1
_EVALUATION_WINDOWS = 256


@dataclass(frozen=True)
class TextData:
    """Text as windows of ``STEPS`` characters, the last tenth of it for testing.

    ``train_windows`` and ``test_windows`` [windows, STEPS + 1] hold the numbers of characters in
    ``class_names``, int64; the first of a window is also the last of the one before. Inputs are all but the
    last character of a window, labels all but the first.
    """

    task: ClassVar[str] = "text"

    name: str
    train_windows: torch.Tensor
    test_windows: torch.Tensor
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an input, (STEPS,)."""
        return (self.train_windows.shape[1] - 1,)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def train_labels(self) -> torch.Tensor:
        return self.train_windows[:, 1:]

    @property
    def test_labels(self) -> torch.Tensor:
        return self.test_windows[:, 1:]

    def resized(self, side: int | None) -> TextData:
        """The same data.

        Raises:
            DataError: ``side`` is given, and text has none.
        """
        if side is not None:
            raise DataError(f"{self.name}: text cannot be resized; leave out the size {side}")
        return self

    def train_batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels [B, STEPS] by the numbers of their windows, int64 [B]."""
        windows = self.train_windows[index]
        return windows[:, :-1], windows[:, 1:]

    def test_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Test inputs and labels in order."""
        for windows in self.test_windows.split(_EVALUATION_WINDOWS):
            yield windows[:, :-1], windows[:, 1:]

    def to(self, device: torch.device) -> TextData:
        """The same data with all tensors on ``device``."""
        windows = (self.train_windows.to(device), self.test_windows.to(device))
        return replace(self, train_windows=windows[0], test_windows=windows[1])

    def decoded(self, tokens: torch.Tensor) -> str:
        """The text that ``tokens`` [n] are the numbers of."""
        return "".join(self.class_names[i] for i in tokens.tolist())


def load_text(root: Path | None) -> TextData:
    """The characters of the file ``root``, or of the standard library.

    Raises:
        DataError: the file cannot be read, is no UTF-8 text, or is too short for a window of each kind.
    """
    text = _standard_library() if root is None else _read(root)
    names = tuple(sorted(set(text)))
    number = {name: i for i, name in enumerate(names)}
    tokens = torch.tensor([number[c] for c in text], dtype=torch.int64)
    windows = tokens.unfold(0, STEPS + 1, STEPS) if len(tokens) > STEPS else tokens.new_empty(0, STEPS + 1)
    tests = int(len(windows) * _TEST_SHARE)
    if tests < 1:
        least = int(1 / _TEST_SHARE) * STEPS + 1
        raise DataError(f"text: at least {least} characters are needed, {root} has {len(tokens)}")
    windows = windows.contiguous()
    return TextData("text", windows[:-tests], windows[-tests:], names)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"text: the data root must be a text file: {first_line(error)}") from None


def _standard_library() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    return "\n".join(_read(folder / f"{name}.py") for name in _MODULES)
