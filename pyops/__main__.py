"""``python -m pyops`` and the ``pyops`` command."""

import os
import sys

#: What the extra `train` of the installation brings, by the names by which it is imported.
EXTRA = (
    "typer",
    "rich",
    "tqdm",
    "matplotlib",
    "pandas",
    "PIL",
    "sklearn",
    "safetensors",
    "tensorboard",
    "jinja2",
)


def main(command: str | None = None) -> None:
    """Run the command line, or say in one line what is not installed."""
    try:
        from .cli import main as run

        run(command)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"error: this needs {error.name}: pip install 'pyops-kernels[train]'", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
