"""Which kernels serve a tensor: C++ (``cpp``), CUDA C++ (``cuda``), Triton or plain torch (``reference``).

The choice is made per call from the tensor's device and dtype: by default the compiled library of
that device, or what :func:`use_backend`, :func:`set_backend` or the environment variable
``PYOPS_BACKEND`` ask for. Asking for a backend that is not there raises, and where the default cannot run a
warning says why the next one does: there is no silent fallback.

Threads: every public function may be called from several threads at once. :func:`use_backend` holds for the
thread or the asyncio task that entered it, and for what these start with a copy of their context
(``asyncio.create_task``, ``asyncio.to_thread``), whatever other threads do meanwhile; a new
``threading.Thread`` begins with the process's backend. Backward uses the kernels that forward used, and what
autograd calls in threads of its own (hooks, recomputation by ``torch.utils.checkpoint``) sees the backend of
the thread that called it. Compiled functions look at their thread only: a task must not await within
:func:`use_backend` while another task of its thread calls one.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace

import torch
from torch.autograd import forward_ad

from . import _availability, _library
from .small_tensors import KEPT as _KEPT
from .small_tensors import TINY as _TINY
from .small_tensors import TORCH_IS_FASTER, TORCH_IS_FASTER_IN_16_BITS


class BackendError(ValueError, RuntimeError):
    """The backend that was asked for cannot run; the message says why and which ones can."""


BACKENDS = ("cpp", "cuda", "triton", "reference")

_FLOATING = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_DEFAULTS = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}

_SIXTEEN_BITS = (torch.bfloat16, torch.float16)
#: Found without a look into torch in each call of a small op.
_STRIDED, _FLOAT32, _is_grad_enabled = torch.strided, torch.float32, torch.is_grad_enabled
_deterministic = torch.are_deterministic_algorithms_enabled
_transforms_are_active, _tracing_state = (
    torch._C._are_functorch_transforms_active,
    torch._C._get_tracing_state,
)
_TENSOR, _PARAMETER = torch.Tensor, torch.nn.Parameter

_namespaces = {"cpp": "pyops", "cuda": "pyops", "triton": "pyops_triton"}
#: The op handles of each backend in use. Attributes, because torch.compile reads a dictionary once per
#: graph, before a later op of that graph may have added to it.
_bound = SimpleNamespace()
_missing: dict[tuple[str, str, int], str | None] = {}
_warnings: set[str] = set()
#: ``_bound.cpp`` if it is there: looked at in each call.
_cpp: SimpleNamespace | None = None

#: Stands for "what the process asks for" where a context asks for nothing of its own.
_PROCESS = "the process's"
#: What the process, and what a context of :func:`use_backend` asks for.
_of_process: str | None = None
_of_context: ContextVar[str | None] = ContextVar("pyops backend", default=_PROCESS)
#: Whether anybody has asked for a backend yet; until then a call asks nothing else.
_anyone_asked = False


class _OfThread(threading.local):
    """The same as :data:`_of_context` for torch.compile, whose guards cannot read a context variable."""

    name: str | None = _PROCESS


_of_thread = _OfThread()
#: The threads in :func:`own_kernels`.
_own_threads: set[int] = set()


def register_backend(name: str, namespace: str) -> None:
    """Add a backend whose kernels are registered under ``namespace`` (the tests add an emulator)."""
    _library.add_namespace(namespace)
    _namespaces[name] = namespace


def missing_reason(backend: str, device: str | torch.device) -> str | None:
    """Why ``backend`` cannot run on ``device``; None when it can. "cuda" is the first GPU."""
    device = torch.device(device)
    key = (backend, device.type, (device.index or 0) if device.type == "cuda" else 0)
    if key not in _missing:
        _missing[key] = _find_missing_reason(*key)
    return _missing[key]


def _find_missing_reason(backend: str, device_type: str, index: int) -> str | None:
    if backend == "reference":
        return None
    if backend not in _namespaces:
        return f"unknown backend; the backends are {', '.join(BACKENDS)}"
    if backend == "triton":
        return _availability.triton_reason(device_type)
    if backend == "cpp":
        return _library.load_errors.get("cpp") if device_type == "cpu" else "it serves cpu tensors"
    if backend == "cuda":
        return _availability.cuda_reason(index) if device_type == "cuda" else "it serves cuda tensors"
    return None if device_type == "cpu" else "it serves cpu tensors"


def available_backends(device: str | torch.device = "cpu") -> list[str]:
    """Names of the backends that can run on ``device``, the default first."""
    preferred = _DEFAULTS.get(torch.device(device).type, ())
    names = [*preferred, *(name for name in (*_namespaces, "reference") if name not in preferred)]
    return [name for name in names if missing_reason(name, device) is None]


def set_backend(name: str | None) -> None:
    """Use backend ``name`` for every following call in this process; None returns to the default.

    Within :func:`use_backend` it holds for that context only, and ends with it.

    Raises:
        BackendError: no such backend, or it can run on no device here; the message says why.
    """
    global _of_process
    _prepare(name)
    if _of_context.get() is _PROCESS:
        _of_process = name
    else:
        _set_context(name)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Context in which every call uses backend ``name`` (see :func:`set_backend`), and others' calls do not.

    It belongs to the calling thread or asyncio task; the module's docstring says how threads get it.
    """
    _prepare(name)
    previous = _of_context.get()
    _set_context(name)
    try:
        yield
    finally:
        _set_context(previous)


def get_backend() -> str | None:
    """The backend that calls here ask for by :func:`use_backend`, :func:`set_backend` or ``PYOPS_BACKEND``.

    None: each tensor's device and dtype decide (:func:`available_backends` has the default first).
    """
    if torch.compiler.is_compiling():
        name = _of_thread.name
    else:
        name = _of_context.get()
        # A thread of autograd: torch leaves the context of the thread that called backward.
        if name is _PROCESS and torch._C._is_key_in_tls("context"):
            name = torch._C._get_obj_in_tls("context").get(_of_context, _PROCESS)
    return _of_process if name == _PROCESS else name


def _prepare(name: str | None) -> None:
    """Raise unless ``name`` can run, and have its ops at hand."""
    global _anyone_asked
    if name is not None:
        _check_usable(name)
        _bind(name)
        _anyone_asked = True


def _set_context(name: str | None) -> None:
    _of_context.set(name)
    _of_thread.name = name


@contextmanager
def own_kernels() -> Iterator[None]:
    """Context in which the calling thread leaves no small tensor to torch (see :func:`prefers_torch`)."""
    thread = threading.get_ident()
    if thread in _own_threads:
        yield
        return
    _own_threads.add(thread)
    try:
        yield
    finally:
        _own_threads.discard(thread)


def _in_own_kernels() -> bool:
    # torch.compile, which may run in another thread, cannot trace the question which one it is.
    return not torch.compiler.is_compiling() and threading.get_ident() in _own_threads


def _check_usable(name: str) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(f"cuda:{i}" for i in range(gpus))]
    reasons = {device: missing_reason(name, device) for device in devices}
    if all(reasons.values()):
        details = "; ".join(f"on {device}: {reason}" for device, reason in reasons.items())
        usable = sorted({n for device in devices for n in available_backends(device)})
        raise BackendError(f"backend {name!r} is not available ({details}); available: {', '.join(usable)}")


def resolve(tensor: torch.Tensor, op: str | None = None) -> SimpleNamespace | None:
    """The op handles that serve ``tensor``, or None for the reference implementation.

    It also serves the tensor where ``op`` is given and the backend has no kernel for it, under transforms of
    ``torch.func``, forward-mode differentiation and ``torch.jit.trace``, and a DTensor: torch's formulas have
    rules for these, the kernels have not.

    The handles are attributes by op name (``handles.cross_entropy_forward``), each an ``OpOverload``.

    Raises:
        BackendError: the requested backend cannot run on the tensor's device.
    """
    if forward_ad._current_level >= 0 or _transforms_are_active() or _tracing_state() is not None:
        return None
    kind = tensor.__class__
    if kind is not _TENSOR and kind is not _PARAMETER and hasattr(tensor, "device_mesh"):
        return None
    requested = get_backend() if _anyone_asked else None
    if requested is None and tensor.is_cpu and _cpp is not None:  # the usual call
        return _cpp if tensor.dtype in _FLOATING and op not in _cpp.without_kernel else None
    device = tensor.device
    name = _choose(requested, device.type, device.index)
    if name == "reference" or tensor.dtype not in _FLOATING:
        return None
    handles: SimpleNamespace = getattr(_bound, name)
    return None if op in handles.without_kernel else handles


def cpu_kernels() -> SimpleNamespace | None:
    """What :func:`resolve` finds for a usual tensor on the CPU while no backend is asked for; None without
    the library."""
    return getattr(_bound, "cpp", None)


def _choose(requested: str | None, device_type: str, index: int | None) -> str:
    return _choose_once(requested, device_type, index)


# torch.compile runs it instead of tracing it: a first call imports modules and asks what GPU there is. This
# is all that torch.compiler.assume_constant_result does; calling that would import the compiler with pyops.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _choose_once(requested: str | None, device_type: str, index: int | None) -> str:
    """The name of the backend that serves the device; it is bound."""
    device = torch.device(device_type) if index is None else torch.device(device_type, index)
    name = requested or _default(device)
    if reason := missing_reason(name, device):
        raise BackendError(
            f"backend {name!r} cannot run on a tensor on {str(device)!r}: {reason}; "
            f"available there: {', '.join(available_backends(device))}"
        )
    _bind(name)
    return name


def prefers_torch(
    op: str, input: torch.Tensor, *others: torch.Tensor | None, elements: int | None = None
) -> bool:
    """The one rule for small tensors: a single op on them is left to torch's own op.

    Args:
        op: the op's entry in the tables of :mod:`pyops.small_tensors`.
        input: the tensor whose elements count.
        others: tensors that may need a gradient as well.
        elements: what the rule counts where that is not ``input`` itself (an op whose output is larger).

    A call of a Python ``autograd.Function`` takes longer than one of torch's in C++, and on so few elements
    the call is most of the time. The rule holds on the CPU, and only while no backend is asked for by name
    and the library is there (its absence must not go unnoticed). Fused forms do not use it, because they win
    by replacing several calls (batch_norm with ReLU does: it would not win), nor does dropout, because its
    mask must be the same everywhere. In float64 it holds up to ``TINY_ELEMENTS``.

    Some of torch's ops have other bits for another number of threads: batch norm of rows, the gradient of a
    softmax. Under ``torch.use_deterministic_algorithms(True)`` none is used.

    Sparse and nested tensors, for which there are no kernels and no formulas, are torch's of any size. A size
    that a compiler leaves open is not asked for: it would no longer be open.
    """
    # What torch gets as it is small may be of any layout.
    if input.is_cpu and _cpp is not None and (not _anyone_asked or get_backend() is None):
        count = input.numel() if elements is None else elements
        if (
            count.__class__ is int
            and count <= _KEPT
            and not (_deterministic() and _is_strict())
            and not (_own_threads and _in_own_kernels())
        ):
            value, gradient = _TINY
            if input.dtype is _FLOAT32:
                value, gradient = TORCH_IS_FASTER.get(op, _TINY)
            elif input.dtype in _SIXTEEN_BITS:
                value, gradient = TORCH_IS_FASTER_IN_16_BITS.get(op, _TINY)
            if count <= value and count <= gradient:
                return True
            needs_gradient = _is_grad_enabled() and (
                input.requires_grad or any(t is not None and t.requires_grad for t in others)
            )
            if count <= (gradient if needs_gradient else value):
                return True
    return input.layout is not _STRIDED or input.is_nested  # is_strided without the call


def _is_strict() -> bool:
    """Whether determinism is more than a warning; a compiler cannot ask."""
    return torch.compiler.is_compiling() or not torch.is_deterministic_algorithms_warn_only_enabled()


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of elements in memory, and not sparse or nested."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _default(device: torch.device) -> str:
    """The first of the device's backends that can run; a warning says why those before it cannot."""
    reasons: dict[str, str] = {}
    for name in _DEFAULTS.get(device.type, ()):
        reason = missing_reason(name, device)
        if reason is None:
            break
        reasons[name] = reason
    else:
        name = "reference"
    if device.type == "cpu" and name == "reference":
        raise BackendError(f"the C++ kernels are not available: {reasons['cpp']}")
    if reasons:
        _warn_of_fallback(name, reasons)
    return name


def _warn_of_fallback(name: str, reasons: dict[str, str]) -> None:
    if name == "triton" and not _library.is_built("cuda"):
        return  # an installation without nvcc is as it was meant
    details = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
    if name == "reference":
        what = "no kernels serve CUDA tensors here, plain torch ops do"
        advice = "Build the CUDA library, or install Triton and a C compiler"
    else:
        what, advice = f"{name} serves CUDA tensors here", "`pyops info` tells more"
    message = f"pyops: {what} ({details}). {advice}; pyops.set_backend({name!r}) says that it is meant."
    if message not in _warnings:
        _warnings.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _bind(name: str) -> None:
    if name == "reference" or hasattr(_bound, name):
        return
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
    setattr(_bound, name, handles)
    global _cpp
    _cpp = getattr(_bound, "cpp", None)


def _bind_loaded() -> None:
    """Bind the compiled libraries: a usual call on the CPU then asks nothing else."""
    for name in _library.loaded:
        _bind(name)


def _from_environment() -> None:
    name = os.environ.get("PYOPS_BACKEND")
    if name:
        try:
            set_backend(name)
        except BackendError as error:
            raise BackendError(f"environment variable PYOPS_BACKEND: {error}") from None
