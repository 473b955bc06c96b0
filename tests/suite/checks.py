"""What must hold for every op on every backend. Ops' contracts give each check its cases."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyops import backends

from .backends import Backend, has_kernel, raw
from .cases import Case
from .layouts import LAYOUTS, sliced
from .ops import OPS

# Below this, a reference of inputs around 1 is float64 rounding.
_NO_SIGNAL = 1e-14

# How far beyond twice torch's own error a result may be, in units of its dtype's epsilon. One rounding costs
# half a unit; float32 results have several behind them. The reference itself is only float64, so that there
# torch's distance from it says nothing (it is 0 where torch computes by the same formula).
_FLOOR = {torch.float64: 64.0, torch.float32: 4.0, torch.bfloat16: 1.0, torch.float16: 1.0}


# ------------------------------------------------------------------------------------------- running an op


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def upstream_of(case: Case, outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients to send into ``outputs``, the same numbers for every implementation, in float64."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()) + 1)
    return [torch.randn(o.shape, generator=generator, dtype=torch.float64) + 0.5 for o in outputs]


def run(
    function: Callable[..., Any],
    case: Case,
    tensors: dict[str, Tensor],
    *,
    upstream_dtypes: list[torch.dtype] | None = None,
    upstream_layout: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Outputs by name (``output 0``, ...) and gradients (``gradient of input``, ...) of one call.

    Gradients are taken as the op returns them, before a leaf's accumulation could change their strides.
    ``upstream_dtypes`` round the upstream gradients first, so that a reference sees the same numbers.
    """
    differentiable = OPS[case.op].differentiable
    leaves = {
        k: t.detach().requires_grad_(k in differentiable) if t.is_floating_point() else t
        for k, t in tensors.items()
    }
    inputs = leaves
    if case.options.get("inplace_backward"):
        inputs = {**leaves, "input": leaves["input"].clone(memory_format=torch.preserve_format)}
    outputs = _outputs(function(**inputs, **case.options))
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    grads = []
    for i, (o, g) in enumerate(zip(outputs, upstream_of(case, outputs), strict=True)):
        g = g.to(upstream_dtypes[i]) if upstream_dtypes else g
        g = g.to(o.dtype).to(o.device)
        grads.append(upstream_layout(g) if upstream_layout else g)
    wanted = {k: t for k, t in leaves.items() if k in differentiable}
    found = torch.autograd.grad(outputs, list(wanted.values()), grads)
    results.update({f"gradient of {k}": g for k, g in zip(wanted, found, strict=True)})
    return results


def on_device(tensors: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """The tensors on ``device`` with their strides, storage offsets and expanded dimensions."""
    if device == "cpu":
        return tensors
    moved = {}
    for name, t in tensors.items():
        size = t.untyped_storage().size() // t.element_size()
        storage = torch.as_strided(t, (size,), (1,), 0).to(device)
        moved[name] = torch.as_strided(storage, t.shape, t.stride(), t.storage_offset())
    return moved


# ------------------------------------------------------------------------------------------------ accuracy


def _errors(found: Tensor, wanted: Tensor, where: Tensor, least: float) -> tuple[float, float]:
    """Largest error relative to the largest reference value, and the median of elementwise relative errors.

    Errors of values below ``least`` are relative to it.

    The first says whether the signal is right. The second sees elements that are small beside the largest,
    such as a gradient's off-target classes; a mean would be ruled by those that cancel to almost nothing.
    """
    if not where.any():
        return 0.0, 0.0
    found, wanted = found.double().cpu()[where], wanted[where]
    error = (found - wanted).abs()
    # Values that cancel to the float64 formula's own rounding are no signal; among them errors are absolute.
    signal = wanted.abs() > _NO_SIGNAL
    scale = max(wanted.abs().max().item(), least) if signal.any() else 1.0
    sizes = wanted[signal].abs().clamp_min(least)
    relative = (error[signal] / sizes).median().item() if signal.any() else 0.0
    return error.max().item() / scale, relative


def assert_as_accurate(
    name: str, found: Tensor, torchs: Tensor, wanted: Tensor, *, by_chance: bool = False
) -> None:
    """``found`` is at most twice as far from the float64 ``wanted`` as torch's result of that dtype is.

    Cases that are drawn ``by_chance`` have eight times what is allowed beyond that. It is luck whether
    torch's result of few elements is exact, and whether they cancel: values below 0.5 then count as 0.5.
    """
    finite, torchs = wanted.isfinite(), torchs.cpu()
    torch.testing.assert_close(
        found.double().cpu()[~finite], wanted[~finite], rtol=0, atol=0, equal_nan=True,
        msg=lambda m: f"{name}: NaN or inf where the reference has other values\n{m}",
    )  # fmt: skip
    assert found.cpu()[finite].isfinite().all(), f"{name} has NaN or inf where the reference has not"
    floor = _FLOOR[found.dtype] * torch.finfo(found.dtype).eps * (8 if by_chance else 1)
    least = 0.5 if by_chance and wanted.numel() < 64 else 0.0
    # torch leaves float16's range earlier, and multiplies the NaN of ignored rows by 0.
    kinds = ("largest error relative to the largest value", "median relative error")
    our_errors = _errors(found, wanted, finite, least)
    their_errors = _errors(torchs, wanted, finite & torchs.isfinite(), least)
    for kind, ours, theirs in zip(kinds, our_errors, their_errors, strict=True):
        bound = 2 * theirs + floor
        assert ours <= bound, f"{name}: {kind} is {ours:.3g}, torch's is {theirs:.3g}, bound {bound:.3g}"


def check_accuracy(
    case: Case,
    backend: Backend,
    dtype: torch.dtype,
    *,
    layout: str | None = None,
    upstream_layout: Callable[[Tensor], Tensor] | None = None,
    by_chance: bool = False,
) -> None:
    """Outputs and gradients against the float64 formula, shapes and dtypes against torch."""
    op = OPS[case.op]
    tensors = case.tensors(dtype)
    if layout is not None:
        tensors = {k: LAYOUTS[layout](t) for k, t in tensors.items()}
    plain = {k: t.contiguous().clone() for k, t in tensors.items()}
    torchs = run(op.torch, case, plain, upstream_layout=upstream_layout)
    exact = {k: t.double() if t.is_floating_point() else t for k, t in plain.items()}
    dtypes = [o.dtype for n, o in torchs.items() if n.startswith("output")]
    wanted = run(op.formula, case, exact, upstream_dtypes=dtypes, upstream_layout=upstream_layout)
    found = run(op.pyops, case, on_device(tensors, backend.device), upstream_layout=upstream_layout)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        theirs = torchs[name]
        assert value.dtype == theirs.dtype, f"{name} has dtype {value.dtype}, torch's {theirs.dtype}"
        assert value.shape == theirs.shape, f"{name} has shape {value.shape}, torch's {theirs.shape}"
        assert_as_accurate(name, value, theirs, wanted[name], by_chance=by_chance)


def strided_upstream(gradient: Tensor) -> Tensor:
    """An upstream gradient that is not contiguous."""
    return sliced(gradient)


def expanded_upstream(gradient: Tensor) -> Tensor:
    """The upstream gradient that ``loss.sum().backward()`` sends: one number with stride 0."""
    if gradient.numel() == 0:
        return gradient
    return gradient.reshape(-1)[:1].expand(gradient.numel()).view(gradient.shape)


# -------------------------------------------------------------------------------------- gradient checking


def check_gradcheck(case: Case, backend: Backend) -> None:
    """First and second derivatives against finite differences, in float64."""
    op = OPS[case.op]
    tensors = on_device(case.tensors(torch.float64), backend.device)
    names = [k for k in tensors if k in op.differentiable]
    others = {k: t for k, t in tensors.items() if k not in names}

    def function(*inputs: Tensor) -> Any:
        return op.pyops(**dict(zip(names, inputs, strict=True)), **others, **case.options)

    inputs = tuple(tensors[k].clone().requires_grad_() for k in names)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=not backend.thorough)
    if backend.thorough:
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


# --------------------------------------------------------------------------------------------- dispatching


class _Recorder(TorchDispatchMode):
    """Keeps the calls of the raw ops, with copies of their arguments as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("pyops"):
            copies = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
            self.calls.append((func, copies, kwargs or {}))
        return func(*args, **(kwargs or {}))


def recorded_calls(case: Case, backend: Backend, dtype: torch.dtype) -> list[tuple[Any, tuple, dict]]:
    """The raw ops that forward and backward of ``case`` call, with their arguments."""
    with _Recorder() as recorder:
        run(OPS[case.op].pyops, case, on_device(case.tensors(dtype), backend.device))
    assert recorder.calls, "no raw op was called"
    return recorder.calls


def check_opcheck(case: Case, backend: Backend, dtype: torch.dtype = torch.float32) -> None:
    """Schema (mutation, aliasing), fake kernel and AOT dispatch of each raw op that ``case`` calls.

    The last is slow, and of one backend: schemas and fakes, which it is about, are defined once for all.
    """
    utilities = ("test_schema", "test_faketensor")
    if backend.name == "cpp":
        utilities += ("test_aot_dispatch_dynamic",)
    for func, args, kwargs in recorded_calls(case, backend, dtype):
        torch.library.opcheck(func, args, kwargs, test_utils=utilities)


def check_meta(case: Case) -> None:
    """Meta tensors give the shapes and dtypes of torch's results, forward and backward."""
    tensors = {k: t.to("meta") for k, t in case.tensors(torch.float32).items()}
    ours, theirs = (run(function, case, tensors) for function in (OPS[case.op].pyops, OPS[case.op].torch))
    for name, value in ours.items():
        assert (value.shape, value.dtype) == (theirs[name].shape, theirs[name].dtype), name


class _Watch(TorchDispatchMode):
    """Fails on what would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)
        assert func.overloadpacket not in waits, f"{func} synchronises with the device"
        return func(*args, **(kwargs or {}))


def check_no_host_sync(case: Case, backend: Backend, dtype: torch.dtype = torch.float32) -> None:
    """Nothing reads a tensor's value on the host."""
    tensors = on_device(case.tensors(dtype), backend.device)
    with _Watch():
        run(OPS[case.op].pyops, case, tensors)


def check_compile(
    case: Case, backend: Backend, dtype: torch.dtype, compiler: str = "aot_eager", *, exact: bool = True
) -> None:
    """``torch.compile(fullgraph=True)`` gives what eager gives, forward and backward."""
    torch.compiler.reset()
    tensors = on_device(case.tensors(dtype), backend.device)
    eager = run(OPS[case.op].pyops, case, tensors)
    compiled = run(torch.compile(OPS[case.op].pyops, fullgraph=True, backend=compiler), case, tensors)
    exact = exact and compiler == "aot_eager"
    for name, value in eager.items():
        if exact:
            torch.testing.assert_close(compiled[name], value, rtol=0, atol=0, equal_nan=True)
        else:
            torch.testing.assert_close(compiled[name], value)


def check_compiles_once(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], **options: Any
) -> None:
    """With dynamic shapes ``function`` is compiled for the first of ``calls`` alone, and gives what eager
    gives, forward and backward."""
    from torch._dynamo.testing import CompileCounterWithBackend  # not for every process of the smoke check

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    compilations = set()
    for arguments in calls:
        found = compiled(*arguments, **options)
        with backends.own_kernels():  # which a graph of open sizes has, however small they turn out
            wanted = function(*arguments, **options)
        assert torch.equal(found, wanted)
        if leaves := [t for t in arguments if isinstance(t, Tensor) and t.requires_grad]:
            upstream = torch.randn_like(wanted)
            gradients = [torch.autograd.grad(y, leaves, upstream) for y in (found, wanted)]
            assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
        compilations.add(counter.frame_count)
    assert len(compilations) == 1  # how many graphs the first call has is torch's business


def check_raw_op_refuses(backend: Backend, op: str, arguments: tuple[Any, ...], message: str) -> None:
    """The raw op complains, by a ``message`` of its own, instead of reading what is not there."""
    function = raw(backend, op)
    if not has_kernel(backend, op):
        pytest.skip("no kernel")
    tensors = {str(i): a for i, a in enumerate(arguments) if isinstance(a, Tensor)}
    moved = on_device(tensors, backend.device)
    with pytest.raises(RuntimeError, match=message):
        function(*[moved.get(str(i), a) for i, a in enumerate(arguments)])


# --------------------------------------------------------------------------------------------- determinism


def assert_bit_equal(first: dict[str, Tensor], second: dict[str, Tensor], what: str) -> None:
    for name, value in first.items():
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (value, second[name])]
        assert torch.equal(*bits), f"{name} differs {what}"


def check_determinism(
    case: Case, backend: Backend, dtype: torch.dtype, thread_counts: tuple[int, ...] | None = None
) -> None:
    """The same bits for every number of threads (the C++ kernels alone have any), and on every run."""
    if thread_counts is None:
        thread_counts = (1, 2, 3) if backend.name == "cpp" else (1,)
    tensors = on_device(case.tensors(dtype), backend.device)
    first = None
    for threads in thread_counts:
        torch.set_num_threads(threads)
        for _ in range(2):
            results = run(OPS[case.op].pyops, case, tensors)
            first = first or results
            assert_bit_equal(first, results, f"between {thread_counts[0]} and {threads} threads or runs")


# -------------------------------------------------------------------------------------------------- memory


def saved_for_backward(function: Callable[[], Any], *given: Tensor) -> int:
    """Bytes that autograd keeps for backward besides the storages of ``given``."""
    known = {t.untyped_storage().data_ptr() for t in given}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _ = function()
    return sum(kept.values())


class _Largest(TorchDispatchMode):
    """The largest number of elements in the storage of any tensor that an op returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return result


def largest_allocation(function: Callable[[], Any]) -> int:
    """Elements of the largest tensor made while ``function`` runs."""
    with _Largest() as largest:
        function()
    return largest.elements


def same_as_torch_autocast(case: Case, backend: Backend, dtype: torch.dtype, amp: torch.dtype) -> None:
    """Under autocast: the dtypes of outputs and gradients are those of torch."""
    device = backend.device
    tensors = on_device(case.tensors(dtype), device)
    with torch.autocast(device, amp):
        ours = run(OPS[case.op].pyops, case, tensors)
        theirs = run(OPS[case.op].torch, case, tensors)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, f"{name}: {value.dtype}, torch's {theirs[name].dtype}"


# ------------------------------------------------------------------------------------------------- losses


def check_legacy_reduction(ours: Callable[..., Any], torchs: Callable[..., Any], *tensors: Tensor) -> None:
    """Every pair of ``size_average`` and ``reduce`` means what it means in torch, with torch's warning."""
    for size_average, reduce in itertools.product((None, True, False), repeat=2):
        options = {"size_average": size_average, "reduce": reduce}
        warned = size_average is not None or reduce is not None
        results = []
        for function in (ours, torchs):
            with pytest.warns(UserWarning, match="reduce args will be dep") if warned else nullcontext():
                results.append(function(*tensors, **options))
        torch.testing.assert_close(*results)
