"""Examples of the notes that are no networks, a file for each.

Its function ``example(output)`` draws ``NAME.png`` into the folder ``output`` and returns lines to print.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ..errors import NetworkError, unknown_name


def example_names() -> list[str]:
    """Names of all examples, sorted."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))


def get_example(name: str) -> Callable[[Path], list[str]]:
    """The function that runs the example called ``name``.

    Raises:
        NetworkError: no such example; the message suggests the nearest names.
    """
    if name not in example_names():
        raise NetworkError(unknown_name("example", name, example_names()))
    return import_module(f"{__name__}.{name}").example
