"""The pictures on the pages of the networks: ``python docs/networks/pictures.py [NETWORK ...]``.

Each network is trained for a while on data that needs no download, and what the run draws is kept in
``docs/pictures/networks``, with fewer colours.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures" / "networks"
#: What is trained for a page, by network: the flags of ``pyops train``.
RUNS = {
    "alexnet": ["--epochs", "6"],
    "batchnorm_lenet": ["--epochs", "10"],
    "googlenet": ["--epochs", "4"],
    "house_price": ["--validation", "0.2"],
    "lenet": [],
    "linear_regression": [],
    "logistic_regression": [],
    "lstm": ["--epochs", "3"],
    "mlp": [],
    "nin": ["--epochs", "6"],
    "perceptron": ["--data", "breast_cancer"],
    "resnet18": ["--epochs", "4"],
    "softmax_regression": [],
    "vgg11": ["--epochs", "6"],
}
#: Of what a run draws, that which a page shows, and what it is.
SHOWN = {
    "curves": "Loss, and what else is measured, by epoch",
    "predictions": "Test images with true and predicted labels, the wrong ones red",
    "confusion": "How many test samples of each class were taken for which",
    "boundary": "The class of each point of the plane",
}
_COLORS = 48


def command(network: str) -> str:
    """What a reader types to get the same."""
    return " ".join(["pyops", "train", network, *RUNS[network]])


def pictures(network: str) -> dict[str, Path]:
    """The pictures that there are of a network, by kind."""
    paths = {kind: FOLDER / f"{network}-{kind}.png" for kind in SHOWN}
    return {kind: path for kind, path in paths.items() if path.exists()}


def make(network: str) -> None:
    """Train and keep the pictures; of a classifier of images the predictions, else the confusion."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", network, *RUNS[network], "--output", folder, "--quiet"]
        subprocess.run([sys.executable, "-m", "pyops", *arguments], cwd=ROOT, check=True)
        for old in pictures(network).values():
            old.unlink()
        kinds = [kind for kind in SHOWN if Path(folder, f"{kind}.png").exists()]
        if "predictions" in kinds:
            kinds.remove("confusion")
        for kind in kinds:
            image = Image.open(Path(folder, f"{kind}.png")).convert("RGB")
            image.quantize(_COLORS).save(FOLDER / f"{network}-{kind}.png", optimize=True)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or RUNS:
        make(name)
