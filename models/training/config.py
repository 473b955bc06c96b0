"""What to train and how, as given by a caller, the command line or a TOML file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..data.load import reads_no_files
from ..errors import TrainError, first_line, unknown_name
from ..files import atomic_write
from ..recipe import Recipe
from ..registry import Network, get_network

#: What a run's folder calls the config file that repeats it.
CONFIG = "config.toml"

#: Hyper-parameters of a recipe that a TrainConfig may replace, by the names that both have.
RECIPE_OPTIONS = tuple(f.name for f in fields(Recipe) if f.name not in ("num_epochs", "options"))


@dataclass(frozen=True)
class TrainConfig:
    """What to train and how. None stands for the default of the network on that data set.

    Args:
        network: name in :func:`pyops.models.network_names`, or ``module:function`` for a builder of your
            own (:func:`pyops.models.registry.imported_network`).
        data: name in :func:`pyops.models.data.load.data_names`; data_root: the folder of its files or, for
            text or a table, the file.
        target: column of a CSV table that is to be predicted; the last by default.
        download: fetch missing files of a public data set into ``data_root``.
        fill_missing: whether missing values of a CSV table are filled in, rather than refused.
        epochs: of the whole run, those before a resume included.
        max_steps: stop after so many steps. Alone it decides the length; with ``epochs`` the
            earlier of the two does.
        folds: cross-validate with so many folds instead of training once.
        options: arguments of the network's builder, such as ``width`` (divides the channels).
        backend: of pyops' kernels, as in :func:`pyops.use_backend`; None chooses by device.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        threads: cores that a process computes on; all by default.
        layers: ``"pyops"``, or ``"torch"`` for the same network of torch's own layers.
        seed: decides the initial weights, the order of the samples and the validation part.
        output: folder of the results, ``runs/NETWORK-DATA`` by default; results of an earlier run
            in it are replaced.
        resume: continue from the checkpoint in ``output``.
        quiet: show nothing.

    All others are those of :class:`pyops.models.Recipe`. When resuming, None keeps what the checkpoint says.
    """

    network: str
    data: str | None = None
    data_root: str | Path | None = None
    target: str | None = None
    fill_missing: bool | None = None
    download: bool = False
    epochs: int | None = None
    max_steps: int | None = None
    folds: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    loss: str | None = None
    optimizer: str | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    l1: float | None = None
    lr_decay: float | None = None
    decay_every: int | None = None
    decay_patience: int | None = None
    schedule: str | None = None
    warm_up: float | None = None
    clip_norm: float | None = None
    accumulate: int | None = None
    amp: str | None = None
    compile: bool | None = None
    cuda_graph: bool | None = None
    init: str | None = None
    validation: float | None = None
    early_stop: int | None = None
    resize: int | None = None
    augment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: str | None = None
    device: str = "cpu"
    threads: int | None = None
    layers: str = "pyops"
    seed: int = 0
    output: str | Path | None = None
    resume: bool = False
    quiet: bool = False

    @property
    def data_name(self) -> str:
        """The data set: the one asked for, or the network's own."""
        if self.data is not None:
            return self.data
        network = get_network(self.network)
        if self.data_root is None or not reads_no_files(network.data):
            return network.data
        if network.data_of_files is not None:
            return network.data_of_files
        return "csv" if Path(self.data_root).suffix.lower() == ".csv" else "images"

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output or Path("runs", f"{self.network.replace(':', '.')}-{self.data_name}"))

    def check(self) -> None:
        """Raises TrainError for options that make no sense for any network and data."""
        for name in ("epochs", "max_steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**63:
            raise TrainError(f"seed must be in [0, 2**63), got {self.seed}")
        if self.layers == "torch" and self.backend is not None:
            raise TrainError(f"backend {self.backend!r} chooses among pyops' kernels, but layers is 'torch'")
        if self.folds is not None and self.validation:
            raise TrainError("folds makes its own validation parts: leave out validation")

    def recipe(self, network: Network, data: str, saved: Mapping[str, Any]) -> Recipe:
        """The hyper-parameters given here, else those ``saved`` in a checkpoint, else the network's own.

        Raises:
            TrainError: values out of range, or that contradict each other.
        """
        default = network.recipe_for(data)
        if saved.get("network") != network.name:  # refused when it is restored
            saved = {}
        chosen = {name: saved[name] for name in RECIPE_OPTIONS if name in saved}
        given = {name: getattr(self, name) for name in RECIPE_OPTIONS}
        chosen |= {name: value for name, value in given.items() if value is not None}
        chosen["options"] = {**saved.get("options", default.options), **self.options}
        task = network.task.with_loss(chosen.get("loss", default.loss))
        recipe = replace(default, **chosen | {"loss": task.losses[0]})
        recipe.check()
        return recipe

    def resolved(self, recipe: Recipe, num_epochs: int) -> dict[str, Any]:
        """Entries of a TOML file that repeats the run: all that decides its results, defaults included."""
        entries = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("output", "resume", "quiet", "download"):
            del entries[name]
        entries |= {name: getattr(recipe, name) for name in RECIPE_OPTIONS}
        entries |= {"data": self.data_name, "epochs": num_epochs, "options": dict(recipe.options)}
        if self.data_root is not None:
            entries["data_root"] = str(Path(self.data_root).absolute())
        return {name: value for name, value in entries.items() if value is not None}


def write_toml(path: Path, entries: Mapping[str, Any]) -> None:
    """Write what :func:`read_toml` reads, atomically."""
    tables = {name: value for name, value in entries.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {_toml(value)}" for name, value in entries.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    with atomic_write(path) as file:
        file.write("\n".join((*lines, "")).encode())


def _toml(value: str | bool | int | float) -> str:
    # JSON's numbers, truth values and strings are TOML's as well.
    return json.dumps(value, ensure_ascii=True)


def read_toml(path: Path) -> dict[str, Any]:
    """The entries of a TOML file, each an argument of :class:`TrainConfig`; ``options`` is a table.

    Raises:
        TrainError: the file cannot be read, is no TOML, or has an unknown entry or one of a wrong type.
    """
    try:
        with path.open("rb") as file:
            entries = tomllib.load(file)
    except OSError as error:
        raise TrainError(f"config {path}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainError(f"config {path}: not TOML: {first_line(error)}") from None
    types = {f.name: str(f.type) for f in fields(TrainConfig)}
    for name, value in entries.items():
        if name not in types:
            raise TrainError(f"config {path}: {unknown_name('entry', name, types)}")
        # "float | None" as it is written above; what is in brackets is no type of the value itself.
        words = types[name].partition("[")[0].split(" | ")
        allowed = [_TYPES[word] for word in words if word in _TYPES]
        # A bool is an int in Python, and an int may stand for a float.
        if type(value) not in allowed and not (float in allowed and type(value) is int):
            expected = " or ".join(sorted({kind.__name__ for kind in allowed}))
            raise TrainError(f"config {path}: {name} must be of type {expected}, got {value!r}")
    return entries


def parsed_option(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` as the name and the value, which is a number or a truth value if it is one in TOML.

    Raises:
        TrainError: there is no ``=``, or no name before it.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise TrainError(f"option {text!r}: expected NAME=VALUE, such as num_hiddens=512")
    try:
        return name.replace("-", "_"), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.replace("-", "_"), value


def merged_config(
    file: Path | None, given: Mapping[str, Any], network_options: Mapping[str, Any]
) -> TrainConfig:
    """A config of the entries of a TOML ``file``, replaced where they are ``given`` as well. Without a file,
    a run that is resumed has those of its own: what decided its first part need not be said again.

    Raises:
        TrainError: as :func:`read_toml`, or neither names a network.
    """
    entries: dict[str, Any] = {}
    if file is not None:
        entries = read_toml(file)
    elif given.get("resume"):
        entries = entries_of_run(given)
    options = {**entries.get("options", {}), **network_options}
    entries |= {**given, "options": options}
    if "network" not in entries:
        raise TrainError("no network: name one, here or in a config file")
    return TrainConfig(**entries)


def entries_of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the config file that the run in the output folder of ``given`` has written, if any.

    A length that is given takes the place of the run's, be it in epochs or in steps.

    Raises:
        TrainError: as :func:`read_toml`.
    """
    if "output" not in given and "network" not in given:
        return {}
    named = {name: given[name] for name in ("data", "data_root", "output") if name in given}
    path = TrainConfig(given.get("network", ""), **named).folder / CONFIG
    entries = read_toml(path) if path.is_file() else {}
    if "epochs" in given or "max_steps" in given:
        entries = {name: value for name, value in entries.items() if name not in ("epochs", "max_steps")}
    return entries


_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "Mapping": dict}
