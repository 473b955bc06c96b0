"""The command line: ``pyops train``, ``pyops demo``, ``pyops bench`` and ``pyops info``.

A mistake of the user is one line on stderr and exit code 2; an interrupt (Ctrl-C) is exit code 130.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Fused training kernels for PyTorch: train, measure, inspect.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"

HugePages = Annotated[
    bool,
    typer.Option(
        help="Let torch put large CPU tensors on 2 MB pages (THP_MEM_ALLOC_ENABLE=1). Page faults of fresh "
        "buffers otherwise cost more than most kernels.",
    ),
]


def use_huge_pages(wanted: bool) -> None:
    """Set torch's switch, which it reads at the process's first CPU allocation; the caller's own wins."""
    if wanted:
        os.environ.setdefault(_HUGE_PAGES, "1")
    else:
        os.environ[_HUGE_PAGES] = "0"


@app.command()
def train(
    network: Annotated[str, typer.Argument(help="softmax_regression, mlp, lenet, ...")],
    data: Annotated[str | None, typer.Option(help="digits, mnist, fashion_mnist, text")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data files; a text file.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the network's own.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adam.")] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="Side that images are resized to.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Divide the network's channels by this.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Probability to drop, of networks that do.")] = None,
    backend: Annotated[str | None, typer.Option(help="cpp, cuda, triton or reference.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    layers: Annotated[str, typer.Option(help="pyops, or torch for the plain twin.")] = "pyops",
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path | None, typer.Option(help="Default: runs/NETWORK-DATA.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from OUTPUT/checkpoint.pt.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    huge_pages: HugePages = True,
) -> None:
    """Train a network; writes metrics, pictures, TensorBoard events, model and checkpoint."""
    use_huge_pages(huge_pages)
    if backend == "triton" and device == "cpu":
        # On the CPU Triton only runs interpreted, which it has to be told before it is imported.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from pyops.models.train import TrainConfig
    from pyops.models.train import train as run_training

    options = {
        "data": data, "data_root": data_root, "epochs": epochs, "max_steps": max_steps,
        "batch_size": batch_size, "lr": lr, "optimizer": optimizer, "resize": resize,
        "backend": backend, "device": device, "layers": layers,
        "seed": seed, "output": output, "resume": resume, "quiet": quiet,
    }  # fmt: skip
    network_options = {k: v for k, v in {"width": width, "dropout": dropout}.items() if v is not None}
    given = {k: v for k, v in options.items() if v is not None}
    config = TrainConfig(network=network, options=network_options, **given)
    run_training(config)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the two runs.")] = Path("runs/demo"),
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    huge_pages: HugePages = True,
) -> None:
    """Train an MLP on handwritten digits with the fused kernels, and its plain torch twin."""
    use_huge_pages(huge_pages)
    from pyops.models.demo import demo as run_demo

    run_demo(output, epochs)


@app.command()
def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="Ops to measure; all by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write raw results here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report here as Markdown.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; the GPU by default if there is one.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few small cases, no torch.compile.")] = False,
    default_allocator: Annotated[
        bool, typer.Option("--default-allocator", help="Measure again without huge pages.")
    ] = False,
    huge_pages: HugePages = True,
) -> None:
    """Measure ops against torch eager, channels_last and torch.compile, in one run, interleaved."""
    use_huge_pages(huge_pages)
    from pyops.benchmarks.run import run

    raise typer.Exit(
        run(ops or [], json_file, device, quick, markdown_path=markdown, default_allocator=default_allocator)
    )


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Versions, what is built, which instruction set is loaded, and why a backend is missing."""
    import pyops

    facts = pyops.info()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in _rows(facts):
        table.add_row(key, value)
    Console().print(table)


def _rows(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows.extend(_rows(value, f"{prefix}{key}."))
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{prefix}{key}", text or "none"))
    return rows


def main() -> None:
    """Entry point: run the command and turn the user's mistakes into one line."""
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _is_user_error(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _is_user_error(error: Exception) -> bool:
    """Errors of the models package, and a backend that is not there."""
    from pyops.backends import BackendError
    from pyops.models.errors import ModelsError

    return isinstance(error, (ModelsError, BackendError))
