"""What `pyops list` shows of the catalog of networks."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show_networks(found: dict[str, Any]) -> None:
    """All networks, and the names of data sets and examples."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("network", "parameters", "in the notes", "default data"):
        right = column in ("parameters", "in the notes")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    table.add_column("notes")
    for entry in found["networks"]:
        in_the_notes = "" if entry["notes_parameters"] is None else f"{entry['notes_parameters']:,}"
        data = f"{entry['data']} {'x'.join(map(str, entry['input_shape']))}"
        table.add_row(entry["name"], f"{entry['parameters']:,}", in_the_notes, data, entry["notes"])
    console = Console()
    console.print(table)
    for name in ("data", "examples"):
        console.print(f"\n{name.capitalize()}: {', '.join(found[name])}", highlight=False)
    console.print(
        "\nThe notes are those of the course that these networks are taken from, in sets 000 to 004; named "
        "are the sets and the section. `pyops list NETWORK` shows recipes and options.",
        highlight=False,
    )


def show_network(entry: dict[str, Any]) -> None:
    """One network: what it is, its recipes and its options."""
    console = Console()
    console.print(f"[bold]{entry['name']}[/bold]: {entry['about']}\n", highlight=False)
    size = f"{entry['parameters']:,} parameters on {entry['data']}"
    if entry["notes_parameters"] is not None:
        size += f", {entry['notes_parameters']:,} as the notes build it"
    console.print(f"{size}.\nIn the notes: {entry['notes']}.\n", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["as the notes have it" if name == "the notes" else f"on {name}" for name in entry["recipes"]]
    for column in ("recipe", *columns):
        table.add_column(column)
    for name in entry["recipes"]["the notes"]:
        values = [recipe[name] for recipe in entry["recipes"].values()]
        table.add_row(name, *(_in_words(value) for value in values))
    console.print(table)
    if len(columns) > 1:
        console.print(
            "\nRecipes on other data are tuned for it: it is smaller than that of the notes.", highlight=False
        )
    console.print(f"\nLosses (--loss; the first by default): {', '.join(entry['losses'])}", highlight=False)
    options = ", ".join(f"--option {name}={_in_words(value)}" for name, value in entry["options"].items())
    console.print(f"Options: {options or 'none'}", highlight=False)


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or "-"
    return "-" if value is None else f"{value}"
