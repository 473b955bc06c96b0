"""Which kernels serve a tensor: C++ (``cpp``), CUDA C++ (``cuda``), Triton or plain torch (``reference``).

The choice is made per call from the tensor's device and dtype: by default the compiled library of
that device, or what :func:`use_backend`, :func:`set_backend` or the environment variable
``PYOPS_BACKEND`` ask for. Asking for a backend that is not there raises: there is no
silent fallback.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from . import _library


class BackendError(ValueError, RuntimeError):
    """The backend that was asked for cannot run; the message says why and which ones can."""


BACKENDS = ("cpp", "cuda", "triton", "reference")

_FLOATING = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_DEFAULTS = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}

#: Largest tensor of :func:`prefers_torch`: on larger ones a kernel saves about what its call costs.
TINY_ELEMENTS = 1024

_namespaces = {"cpp": "pyops", "cuda": "pyops", "triton": "pyops_triton"}
_handles: dict[str, SimpleNamespace] = {}
_missing: dict[tuple[str, str], str | None] = {}
_requested: str | None = None


def register_backend(name: str, namespace: str) -> None:
    """Add a backend whose kernels are registered under ``namespace`` (the tests add an emulator)."""
    _library.add_namespace(namespace)
    _namespaces[name] = namespace


def missing_reason(backend: str, device_type: str) -> str | None:
    """Why ``backend`` cannot run on ``device_type``; None when it can."""
    key = (backend, device_type)
    if key not in _missing:
        _missing[key] = _find_missing_reason(backend, device_type)
    return _missing[key]


def _find_missing_reason(backend: str, device_type: str) -> str | None:
    if backend == "reference":
        return None
    if backend not in _namespaces:
        return f"unknown backend; the backends are {', '.join(BACKENDS)}"
    if backend == "triton":
        return _triton_missing_reason(device_type)
    if backend in ("cpp", "cuda"):
        own_device = "cpu" if backend == "cpp" else "cuda"
        if device_type != own_device:
            return f"it serves {own_device} tensors"
        return _library.load_errors.get(backend)
    return None if device_type == "cpu" else "it serves cpu tensors"


def _triton_missing_reason(device_type: str) -> str | None:
    if device_type not in ("cpu", "cuda"):
        return "it serves cuda tensors"
    if device_type == "cpu" and not _library.triton_serves_cpu():
        return "on the CPU it needs TRITON_INTERPRET=1 set before Triton is imported"
    try:
        importlib.import_module("pyops.triton_kernels")
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return None


def available_backends(device: str | torch.device = "cpu") -> list[str]:
    """Names of the backends that can run on ``device``, the default first."""
    device_type = torch.device(device).type
    preferred = _DEFAULTS.get(device_type, ())
    names = [*preferred, *(name for name in (*_namespaces, "reference") if name not in preferred)]
    return [name for name in names if missing_reason(name, device_type) is None]


def set_backend(name: str | None) -> None:
    """Use backend ``name`` for every following call in this process; None returns to the default.

    Raises:
        BackendError: no such backend, or it can run on no device here; the message says why.
    """
    global _requested
    if name is not None:
        _check_usable(name)
        if name != "reference" and name not in _handles:
            _bind(name)
    _requested = name


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Context in which every call uses backend ``name`` (see :func:`set_backend`)."""
    previous = _requested
    set_backend(name)
    try:
        yield
    finally:
        set_backend(previous)


def _check_usable(name: str) -> None:
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    reasons = {device: missing_reason(name, device) for device in devices}
    if all(reasons.values()):
        details = "; ".join(f"on {device}: {reason}" for device, reason in reasons.items())
        usable = sorted({n for device in devices for n in available_backends(device)})
        raise BackendError(f"backend {name!r} is not available ({details}); available: {', '.join(usable)}")


def resolve(tensor: torch.Tensor, op: str | None = None) -> SimpleNamespace | None:
    """The op handles that serve ``tensor``, or None for the reference implementation.

    It also serves the tensor where ``op`` is given and the backend has no kernel for it.

    The handles are attributes by op name (``handles.cross_entropy_forward``), each an ``OpOverload``.

    Raises:
        BackendError: the requested backend cannot run on the tensor's device.
    """
    if _requested is None and tensor.is_cpu and "cpp" in _handles:  # the usual call
        cpp = _handles["cpp"]
        return cpp if tensor.dtype in _FLOATING and op not in cpp.without_kernel else None
    device_type = tensor.device.type
    if _requested is not None:
        name = _requested
        reason = missing_reason(name, device_type)
        if reason is not None:
            raise BackendError(
                f"backend {name!r} cannot run on a tensor on {device_type!r}: {reason}; "
                f"available there: {', '.join(available_backends(device_type))}"
            )
    else:
        name = _default(device_type)
    if name == "reference" or tensor.dtype not in _FLOATING:
        return None
    handles = _handles.get(name)
    if handles is None:
        handles = _bind(name)
    return None if op in handles.without_kernel else handles


def prefers_torch(input: torch.Tensor, elements: int | None = None) -> bool:
    """The one rule for tiny tensors: a single op on them is left to torch's own op.

    ``elements`` is what the rule counts where that is not ``input`` itself (an op whose output is larger).

    A call of a Python ``autograd.Function`` takes longer than one of torch's in C++, and on so few elements
    the call is most of the time. The rule holds on the CPU, and only while no backend is asked for by name
    and the library is there (its absence must not go unnoticed). Fused forms never use it, because they win
    by replacing several calls, nor does dropout, because its mask must be the same everywhere.
    """
    if _requested is not None or not input.is_cpu or "cpp" not in _handles:
        return False
    return (input.numel() if elements is None else elements) <= TINY_ELEMENTS


def _default(device_type: str) -> str:
    for name in _DEFAULTS.get(device_type, ()):
        if missing_reason(name, device_type) is None:
            return name
    if device_type == "cpu":
        raise BackendError(f"the C++ kernels are not available: {_library.load_errors['cpp']}")
    return "reference"


def _bind(name: str) -> SimpleNamespace:
    namespace = _namespaces[name]
    ops, names = getattr(torch.ops, namespace), _library.op_names(namespace)
    keys = {"cpp": ("CPU",), "cuda": ("CUDA",)}.get(name, ("CPU", "CUDA"))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    without = [op for op in names if not any(has_kernel(f"{namespace}::{op}", key) for key in keys)]
    handles = SimpleNamespace(
        backend=name,
        without_kernel=frozenset(without),
        **{op: getattr(ops, op).default for op in names},
    )
    _handles[name] = handles
    return handles


def _bind_loaded() -> None:
    """Fill the caches for the compiled libraries now: torch.compile cannot trace that in a first call."""
    for name in _library.loaded:
        missing_reason(name, "cpu" if name == "cpp" else "cuda")
        _bind(name)


def _from_environment() -> None:
    name = os.environ.get("PYOPS_BACKEND")
    if name:
        try:
            set_backend(name)
        except BackendError as error:
            raise BackendError(f"environment variable PYOPS_BACKEND: {error}") from None
