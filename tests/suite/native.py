"""Shared libraries that tests compile by themselves, kept in ``build`` and named by a hash of all they are
made of."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .processes import ROOT


def compiler() -> str | None:
    """The C++ compiler to use: ``$CXX`` or g++; None when there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def missing_reason() -> str | None:
    """Why nothing can be compiled here; None when it can."""
    return None if compiler() else "no C++ compiler (g++, or the one that CXX names)"


def library_of_compiler(name: str) -> str | None:
    """Path of the compiler's own library ``name``; None when it has none."""
    command = [str(compiler()), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() else None


def compile_library(
    folder: Path,
    name: str,
    sources: Sequence[Path],
    *,
    headers: Iterable[Path] = (),
    flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
) -> Path:
    """Compile ``sources`` into a shared library in ``folder``, unless it is there; older ones go.

    Args:
        folder: where the library is kept.
        name: what the file name starts with, after ``lib``.
        sources: C++ sources, whatever their suffix.
        headers: what they include of this tree.
        flags: for the compiler; they must name no file that changes.
        link_flags: for the linker, likewise.

    Raises:
        RuntimeError: the compiler failed; the message is its output.
    """
    command = [str(compiler()), "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", *flags]
    digest = hashlib.sha256(" ".join([*command, *link_flags]).encode())
    for path in sorted({*sources, *headers}):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    library = folder / f"lib{name}_{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    work = folder / f"{library.stem}.{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    objects = [work / f"{i}_{source.stem}.o" for i, source in enumerate(sources)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(
            pool.map(
                lambda pair: _run([*command, "-x", "c++", "-c", str(pair[0]), "-o", str(pair[1])]),
                zip(sources, objects, strict=True),
            )
        )
    partial = work / library.name
    _run([*command, "-shared", *map(str, objects), *link_flags, "-o", str(partial)])
    for old in folder.glob(f"lib{name}_{'?' * 16}.so"):
        old.unlink(missing_ok=True)
    partial.replace(library)  # atomic: another process may be building the same
    shutil.rmtree(work)
    return library


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
