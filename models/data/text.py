"""Text as a data set: windows of characters, and for every character the one that follows.

The text is the file given as the data root. Without one it is the source of some modules of Python's standard
library: nearly a megabyte that is always there.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import DataError, first_line
from .dataset import Dataset

#: Characters that a network reads, and predicts, at a time.
STEPS = 35

_MODULES = (
    "argparse", "ast", "bisect", "calendar", "configparser", "csv", "dataclasses", "difflib", "enum",
    "fractions", "functools", "heapq", "inspect", "random", "shutil", "statistics", "string", "textwrap",
    "tokenize",
)  # fmt: skip
_TEST_SHARE = 0.1


def load_text(root: Path | None) -> Dataset:
    """The characters of the file ``root``, or of the standard library, the last tenth of them for testing.

    Inputs and targets are numbers of characters in ``class_names``, int64 [windows, STEPS]: the targets of a
    window are the characters one position after its inputs.

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
    inputs, targets = windows[:, :-1], windows[:, 1:]
    return Dataset("text", inputs[:-tests], targets[:-tests], inputs[-tests:], targets[-tests:], names)


def decoded(tokens: torch.Tensor, names: Sequence[str]) -> str:
    """The text of ``tokens`` [n], which number the characters ``names``."""
    return "".join(names[i] for i in tokens.tolist())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"text: the data root must be a text file: {first_line(error)}") from None


def _standard_library() -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    return "\n".join(_read(folder / f"{name}.py") for name in _MODULES)
