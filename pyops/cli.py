"""The command line: ``pyops list``, ``train``, ``predict``, ``generate``, ``compare``, ``example``,
``demo``, ``bench`` and ``info``.

A mistake of the user is one line on stderr and exit code 2; an interrupt (Ctrl-C) is exit code 130.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

import pyops

app = typer.Typer(
    help="Fused training kernels for PyTorch: train, measure, inspect.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _command_of_kernels(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` as a command that needs torch and the kernels, which its help does not."""

    @app.command()
    @functools.wraps(function)
    def started(**options: Any) -> None:
        pyops._make_public()
        function(**options)

    return function


_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"

HugePages = Annotated[
    bool,
    typer.Option(
        help="Let torch put large CPU tensors on 2 MB pages (THP_MEM_ALLOC_ENABLE=1). Page faults of fresh "
        "buffers otherwise cost more than most kernels.",
    ),
]


def use_huge_pages(wanted: bool) -> None:
    """Set torch's switch, read at the process's first CPU allocation, unless the caller has set it."""
    if wanted:
        os.environ.setdefault(_HUGE_PAGES, "1")
    else:
        os.environ[_HUGE_PAGES] = "0"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"pyops {pyops.__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """What stands before a command."""


@_command_of_kernels
def train(
    network: Annotated[
        str | None, typer.Argument(help="A name that `pyops list` shows, or MODULE:FUNCTION of yours.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of these options, with _ for -; flags win over it.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, mnist, fashion_mnist, images, text, csv, ...")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the files; a text or CSV file.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of a CSV table to predict.")] = None,
    fill_missing: Annotated[bool | None, typer.Option(help="Fill in missing values of a table.")] = None,
    download: Annotated[
        bool | None, typer.Option("--download", help="Fetch missing files of mnist or fashion_mnist.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the network's own.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate with so many folds.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    loss: Annotated[str | None, typer.Option(help="One that `pyops list NETWORK` names.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd.")] = None,
    nesterov: Annotated[bool | None, typer.Option(help="Nesterov's form of the momentum.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Factor of the L2 penalty.")] = None,
    l1: Annotated[float | None, typer.Option(help="Factor of the L1 penalty.")] = None,
    lr_decay: Annotated[float | None, typer.Option(help="Factor of the learning rate at a decay.")] = None,
    decay_every: Annotated[int | None, typer.Option(help="Epochs between decays.")] = None,
    decay_patience: Annotated[int | None, typer.Option(help="Or: decay after a plateau so long.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine: the rate falls to 0.")] = None,
    warm_up: Annotated[float | None, typer.Option(help="Epochs in which it rises.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradients.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Process a batch in so many parts.")] = None,
    amp: Annotated[str | None, typer.Option(help="Mixed precision: bfloat16 or float16.")] = None,
    compile: Annotated[bool | None, typer.Option(help="Run through torch.compile.")] = None,
    cuda_graph: Annotated[bool | None, typer.Option(help="Record a step on the GPU, replay it.")] = None,
    init: Annotated[str | None, typer.Option(help="constant, he, normal or xavier.")] = None,
    validation: Annotated[float | None, typer.Option(help="Share kept apart for validation.")] = None,
    early_stop: Annotated[int | None, typer.Option(help="Epochs to wait for a better one.")] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="Side that images are resized to.")] = None,
    augment: Annotated[str | None, typer.Option(help="Training images: flip, crop or flip,crop.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Divide the network's channels by this.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Probability to drop, of networks that do.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the network's own options; may be repeated.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="cpp, cuda, triton or reference.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:1, ...")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores to compute on.")] = None,
    layers: Annotated[str | None, typer.Option(help="pyops (default), or torch for the plain twin.")] = None,
    seed: Annotated[int | None, typer.Option(help="0 by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Default: runs/NETWORK-DATA.")] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume", help="Continue from OUTPUT/checkpoint.pt.")
    ] = None,
    quiet: Annotated[bool | None, typer.Option("--quiet", help="No progress.")] = None,
    huge_pages: HugePages = True,
) -> None:
    """Train a network; writes metrics, pictures, TensorBoard events, model and checkpoint."""
    given = {name: value for name, value in locals().items() if value is not None}
    use_huge_pages(given.pop("huge_pages"))
    network_options = {name: given.pop(name) for name in ("width", "dropout") if name in given}
    file = given.pop("config", None)
    from pyops.models.training.config import merged_config, parsed_option
    from pyops.models.training.train import train as run_training

    network_options |= dict(parsed_option(text) for text in given.pop("option", None) or [])
    chosen = merged_config(file, given, network_options)
    if chosen.resume and file is None and not chosen.quiet:
        own = sorted({*given, *(["options"] if network_options else [])} - {"network", "output", "resume"})
        but = f", but with the given {', '.join(own)}" if own else ""
        print(f"resuming {chosen.folder} with the options it has had{but}", file=sys.stderr)
    if chosen.backend == "triton" and chosen.device == "cpu":
        # On the CPU Triton only runs interpreted, which it has to be told before it is imported.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    run_training(chosen)


@app.command("list")
def list_networks(
    network: Annotated[str | None, typer.Argument(help="Show this one: recipes and options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """The networks: parameters, default data, and where the notes have them."""
    from . import _listing

    found = _catalog()
    networks = {entry["name"]: entry for entry in found["networks"]}
    if network is not None and network not in networks:
        near = get_close_matches(network, networks, n=3)
        raise typer.BadParameter(
            f"unknown network {network!r}" + (f"; near: {', '.join(near)}" if near else "")
        )
    if as_json:
        print(json.dumps(found["networks"] if network is None else networks[network], indent=2))
    elif network is not None:
        _listing.show_network(networks[network])
    else:
        _listing.show_networks(found)


def _catalog() -> dict[str, Any]:
    """What `make stubs` has written down of the networks, which take seconds to build."""
    files = (Path(folder, "models", "catalog.json") for folder in pyops.__path__)
    text = next(file for file in files if file.is_file()).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@_command_of_kernels
def predict(
    run: Annotated[Path, typer.Argument(help="Output folder of a training run.")],
    more: Annotated[
        list[Path] | None, typer.Argument(help="Further images, or a CSV table.", metavar="[FILES]...")
    ] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Image files, or folders of them.")] = None,
    output: Annotated[Path | None, typer.Option(help="Default: RUN/predicted.png or .csv.")] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Exchange dark and bright first.")] = False,
) -> None:
    """Label images with a trained network, or write predictions beside the rows of a CSV table."""
    from pyops.models.commands.predict import PICTURE, predict_table
    from pyops.models.commands.predict import predict as run_prediction

    given = [*(images or []), *(more or [])]
    if len(given) == 1 and given[0].suffix.lower() == ".csv":
        print(f"table: {predict_table(run, given[0], output)}", file=sys.stderr)
        return

    # A shell expands `--images *.png` to one option and further arguments.
    found = run_prediction(run, given, output, invert=invert)
    for one in found:
        print(f"{one.path}\t{one.label}\t{one.probability:.4f}")
    print(f"picture: {output or run / PICTURE}", file=sys.stderr)


@_command_of_kernels
def generate(
    run: Annotated[Path, typer.Argument(help="Output folder of a run of rnn, lstm or gru.")],
    prompt: Annotated[str, typer.Argument(help="The beginning of the text.")],
    length: Annotated[int, typer.Option(min=1, help="Characters to write.")] = 300,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier, above: wilder.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
) -> None:
    """Continue a text with a trained language model."""
    from pyops.models.commands.generate import generate as run_generation

    print(prompt + run_generation(run, prompt, length=length, temperature=temperature, seed=seed))


@_command_of_kernels
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of two or more runs.")],
    output: Annotated[Path, typer.Option(help="PNG of the curves.")] = Path("runs/compare.png"),
) -> None:
    """Draw the curves of runs over each other; prints what they differ in and how they ended."""
    from pyops.models.commands.compare import compare as run_comparison

    found = run_comparison(runs, output)
    from rich.console import Console
    from rich.table import Table

    table = Table("", *found.names, box=None, pad_edge=False, header_style="bold")
    for key, values in found.settings.items():
        table.add_row(key, *map(str, values))
    for key, values in found.results.items():
        table.add_row(key, *(f"{value:.4g}" for value in values))
    Console().print(table)
    print(f"picture: {output}", file=sys.stderr)


@_command_of_kernels
def example(
    name: Annotated[str, typer.Argument(help="A name that `pyops list` shows.")],
    output: Annotated[Path, typer.Option(help="Folder of the picture.")] = Path("runs/examples"),
) -> None:
    """Run an example of the notes that is no network: gradient descent, or importance weights."""
    from pyops.models.examples import get_example

    for line in get_example(name)(output):
        print(line)
    print(f"picture: {output / f'{name}.png'}", file=sys.stderr)


@_command_of_kernels
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the two runs.")] = Path("runs/demo"),
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    huge_pages: HugePages = True,
) -> None:
    """Train LeNet on handwritten digits with the fused kernels and, in turns, its plain torch twin."""
    use_huge_pages(huge_pages)
    from pyops.models.commands.demo import demo as run_demo

    run_demo(output, epochs)


@_command_of_kernels
def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="Ops to measure; all by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write raw results here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report here as Markdown.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the report here as a page with pictures, and its rows as CSV.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; the GPU by default if there is one.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few small cases, no torch.compile.")] = False,
    default_allocator: Annotated[
        bool, typer.Option("--default-allocator", help="Measure again without huge pages.")
    ] = False,
    neighbours: Annotated[
        int, typer.Option(min=0, help="Measure each case beside so many busy processes, too.")
    ] = 0,
    baseline: Annotated[
        list[str] | None, typer.Option(help="One more baseline: jax (an extra of the installation).")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Instead: is this checkout faster than this commit? Exit code 1 if slower."),
    ] = None,
    sixteen_bit: Annotated[
        bool,
        typer.Option(
            "--sixteen-bit",
            help="Instead: is any op slower in 16 bits than in float32, or than torch? Exit code 1 if so.",
        ),
    ] = False,
    huge_pages: HugePages = True,
) -> None:
    """Measure ops against torch eager, channels_last and torch.compile, in one run, interleaved."""
    use_huge_pages(huge_pages)
    if base is not None:
        from pyops.benchmarks.against import run as run_against

        raise typer.Exit(run_against(base, ops or [], json_file))
    if sixteen_bit:
        from pyops.benchmarks.sixteen_bit import run as run_sixteen_bit

        raise typer.Exit(run_sixteen_bit(ops or [], json_file, quick=quick, markdown_path=markdown))
    from pyops.benchmarks.run import run

    raise typer.Exit(
        run(
            ops or [],
            json_file,
            device,
            quick,
            markdown_path=markdown,
            html_path=html,
            default_allocator=default_allocator,
            neighbours=neighbours,
            baselines=baseline or [],
        )
    )


@_command_of_kernels
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Versions, what is built, which instruction set is loaded, and why a backend is missing."""
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


def main(command: str | None = None) -> None:
    """Entry point: run the command and turn the user's mistakes into one line.

    The arguments are those of the process, behind ``command`` where it is given. Under torchrun,
    only the first process reports a mistake.
    """
    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        app(arguments, prog_name="pyops")
    except KeyboardInterrupt:
        if speaks:
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _is_user_error(error):
            raise
        if speaks:
            print(f"error: {_with_flags(str(error))}", file=sys.stderr)
        sys.exit(2)


def _with_flags(message: str) -> str:
    """An error's message with the names of a config's entries as the flags that they are here."""
    flags = {name: f"--{name.replace('_', '-')}" for name in inspect.signature(train).parameters}
    flags["num_epochs"] = flags["epochs"]
    first, space, rest = message.partition(" ")
    rest = re.sub(r"(?<![\w'./])\w+_\w+(?![\w'./])", lambda found: flags.get(found[0], found[0]), rest)
    return f"{flags.get(first, first)}{space}{rest}"


def _is_user_error(error: Exception) -> bool:
    """Errors of the models package, and a backend that is not there."""
    from pyops.backends import BackendError
    from pyops.models.errors import ModelsError

    return isinstance(error, (ModelsError, BackendError))
