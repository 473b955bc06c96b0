"""Finds the modules of a package, the names that they declare, and torch's own, so that no list is kept."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def load(package: str) -> list[ModuleType]:
    """Import the modules of ``package`` in alphabetical order, but no subpackage and no ``_private`` one."""
    found = pkgutil.iter_modules(sys.modules[package].__path__)
    names = sorted(m.name for m in found if not m.ispkg and not m.name.startswith("_"))
    return [importlib.import_module(f"{package}.{name}") for name in names]


def public_names(modules: Iterable[ModuleType]) -> dict[str, Any]:
    """What the modules declare in ``__all__``, by name.

    Raises:
        ImportError: two modules declare the same name.
    """
    found: dict[str, Any] = {}
    for module in modules:
        for name in getattr(module, "__all__", ()):
            if name in found:
                raise ImportError(f"{module.__name__} declares {name!r}, which another module has already")
            found[name] = getattr(module, name)
    return dict(sorted(found.items()))


def torchs(module: ModuleType, asked: str, name: str) -> Any:
    """What torch's ``module`` calls ``name``, for the module named ``asked``, which has nothing of that name.

    Raises:
        AttributeError: it has nothing either, or ``name`` is private.
    """
    if name.startswith("_") or not hasattr(module, name):
        raise AttributeError(f"module {asked!r} has no attribute {name!r}")
    return getattr(module, name)


def names_of_both(module: ModuleType, own: dict[str, Any]) -> list[str]:
    """For ``dir()``: the names of ``own`` and torch's ``module``'s public ones."""
    return sorted({*own, *(name for name in dir(module) if not name.startswith("_"))})
