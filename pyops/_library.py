"""Schemas, fake kernels and compiled libraries: everything that touches the dispatcher.

An op is *defined* once (:func:`define`), with one schema and one fake kernel, in every namespace of
:data:`NAMESPACES`; a backend then *implements* it in its own namespace. Two namespaces are needed on
the same device because the dispatcher keeps one kernel per dispatch key, and both CUDA C++ and Triton
serve the CUDA key.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LIBRARY_DIR = Path(__file__).with_name("_lib")

NAMESPACES = ["pyops", "pyops_triton"]

_SCHEMAS: dict[str, tuple[str, Callable[..., Any]]] = {}
_ONLY_IN: dict[str, tuple[str, ...]] = {}

#: Why a compiled library is not loaded, by backend name; empty when everything is.
load_errors: dict[str, str] = {}
#: File name of each loaded library, by backend name.
loaded: dict[str, str] = {}


def define(
    name: str, schema: str, fake: Callable[..., Any], *, namespaces: tuple[str, ...] | None = None
) -> None:
    """Define op ``name`` with ``schema`` and ``fake`` (its shape function) in every namespace.

    ``namespaces`` limits an op that only some backends can have.
    """
    _SCHEMAS[name] = (schema, _given_tensors(name, schema, fake))
    if namespaces is not None:
        _ONLY_IN[name] = namespaces
    for namespace in NAMESPACES:
        _define_in(namespace, name)


def _given_tensors(name: str, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """``fake`` behind a check of its tensors: where one is required, torch lets None through."""
    arguments = schema[1 : schema.index(") ->")].split(", ")
    required = {i: a.split()[-1] for i, a in enumerate(arguments) if re.match(r"Tensor[ (]", a)}

    @functools.wraps(fake)
    def checked(*values: Any, **named: Any) -> Any:
        for i, argument in required.items():
            if (values[i] if i < len(values) else named.get(argument)) is None:
                raise TypeError(f"{name}: {argument} must be a Tensor, got None")
        return fake(*values, **named)

    return checked


def add_namespace(namespace: str) -> None:
    """Define every op known so far, and every later one, in one more namespace."""
    if namespace in NAMESPACES:
        return
    NAMESPACES.append(namespace)
    for name in _SCHEMAS:
        _define_in(namespace, name)


def _define_in(namespace: str, name: str) -> None:
    if namespace not in _ONLY_IN.get(name, (namespace,)):
        return
    schema, fake = _SCHEMAS[name]
    qualified = f"{namespace}::{name}"
    # Compliant: the schemas say what is written, no output aliases an input, and each op has its fake.
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(qualified, fake)


def op_names(namespace: str) -> list[str]:
    """Names of the ops defined in ``namespace``."""
    return [name for name in _SCHEMAS if namespace in _ONLY_IN.get(name, (namespace,))]


def implement(namespace: str, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated Python launcher as ``namespace::name`` on CUDA, and where Triton serves the
    CPU there as well."""
    keys = ("CUDA", "CPU") if triton_serves_cpu() else ("CUDA",)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.impl(f"{namespace}::{name}", keys)(function)
        return function

    return register


def triton_is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def triton_serves_cpu() -> bool:
    """Whether Triton kernels run on CPU tensors: interpreted, or by a driver whose device is the CPU."""
    if triton_is_interpreted():
        return True
    if "triton" not in sys.modules or torch.cuda.is_available():  # no driver, or the GPU's
        return False
    try:
        device = sys.modules["triton"].runtime.driver.active.get_active_torch_device()
    except Exception:  # Triton finds no driver, or is broken
        return False
    return bool(device.type == "cpu")


#: Variants of the CPU library by the instruction sets they use, the least demanding first.
CPU_VARIANTS = ("baseline", "avx2", "avx512")


def cpu_variant() -> str:
    """The most demanding variant that may be loaded: ``avx512``, ``avx2`` or ``baseline``.

    Follows torch's own choice, so ``ATEN_CPU_CAPABILITY`` forces ours as well.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        return "avx512"
    return "avx2" if capability == "AVX2" else "baseline"


def load_libraries() -> None:
    """Load one CPU library and, where torch has CUDA, the CUDA library. Call after the schemas exist."""
    _load_cpu()
    if torch.version.cuda is None:
        load_errors["cuda"] = f"torch {torch.__version__} was built without CUDA"
    else:
        _load("cuda", LIBRARY_DIR / "libpyops_cuda.so")


#: Instructions beyond those of its variant that the CPU library knows (csrc/cpu/simd/features.h).
CPU_FEATURES = ("avx512_bf16", "amx_bf16", "amx_float32", "amx_twin")

torch.library.define("pyops::cpu_features", "() -> str[]")


def cpu_features() -> list[str]:
    """Those of :data:`CPU_FEATURES` that the loaded CPU library uses.

    ``PYOPS_CPU_FEATURES``, read once, names by commas what may be used of what the CPU has; ``none`` names
    nothing.

    Raises:
        RuntimeError: the variable names something unknown.
    """
    return list(torch.ops.pyops.cpu_features()) if "cpp" in loaded else []


def is_built(backend: str) -> bool:
    """Whether there is a library of the ``backend``, which may not load."""
    return any(LIBRARY_DIR.glob(f"libpyops_{'cpu' if backend == 'cpp' else backend}*.so"))


def _load_cpu() -> None:
    """Load the most demanding variant that was built and may be loaded."""
    paths = {name: LIBRARY_DIR / f"libpyops_cpu_{name}.so" for name in CPU_VARIANTS}
    built = [name for name, path in paths.items() if path.exists()]
    allowed = CPU_VARIANTS[: CPU_VARIANTS.index(cpu_variant()) + 1]
    usable = [name for name in built if name in allowed]
    if usable or not built:
        _load("cpp", paths[usable[-1] if usable else cpu_variant()])
    else:
        load_errors["cpp"] = (
            f"the CPU library was built for {' and '.join(built)} only, and {' or '.join(allowed)} is needed "
            "here (reinstall here, or with PYOPS_CPU_VARIANTS=all)"
        )


def _load(backend: str, path: Path) -> None:
    if not path.exists():
        load_errors[backend] = f"{path.name} was not built (reinstall with a compiler: pip install -e .)"
        return
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        load_errors[backend] = f"{path.name} could not be loaded: {error}"
    else:
        loaded[backend] = path.name
