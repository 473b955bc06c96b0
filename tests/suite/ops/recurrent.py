"""Recurrent layers and cells for the shared suite."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyops import functional as F

from ..backends import BACKENDS, CPP, WITH_KERNELS, Backend
from ..cases import Case, Op, normal
from ..contract import BOTH, FLOAT, Contract, over
from ..cuda_code import Code
from ..mutants import Mutant
from ..triton_cases import BF16, F32, F64, fp32_precision, meta

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


def _params(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[name] for name in sorted(tensors) if name.startswith("param")]


def _of_functions(find: Callable[[str], Callable[..., Any]], name: str) -> Callable[..., Any]:
    """A call of the layers' function ``name`` with tensors by name."""

    def call(
        input: Tensor,
        h_0: Tensor,
        c_0: Tensor | None = None,
        batch_sizes: Tensor | None = None,
        *,
        bias: bool = True,
        layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        **params: Tensor,
    ) -> tuple[Tensor, ...]:
        if batch_sizes is not None:
            batch_sizes = batch_sizes.cpu()  # where torch's packed sequences have them
        hx = h_0 if c_0 is None else (h_0, c_0)
        arguments = hx, _params(params), bias, layers, 0.0, True, bidirectional
        return find(name)(input, batch_sizes, arguments, batch_first)

    return call


def _pyops(name: str) -> Callable[..., Any]:
    def call(input: Tensor, batch_sizes: Tensor | None, arguments: tuple, batch_first: bool) -> Any:
        return getattr(F, name)(input, *arguments, batch_first, batch_sizes=batch_sizes)

    return call


def _torch(name: str) -> Callable[..., Any]:
    def call(input: Tensor, batch_sizes: Tensor | None, arguments: tuple, batch_first: bool) -> Any:
        if batch_sizes is None:
            return getattr(torch, name)(input, *arguments, batch_first)
        return getattr(torch, name)(input, batch_sizes, *arguments)

    return call


def _formula(name: str) -> Callable[..., Any]:
    """Sequence by sequence, step by step."""

    def call(input: Tensor, batch_sizes: Tensor | None, arguments: tuple, batch_first: bool) -> Any:
        hx, params, bias, layers, _, _, bidirectional = arguments
        h_0, c_0 = hx if name == "lstm" else (hx, None)
        x = input.transpose(0, 1) if batch_first else input
        sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()
        rows = x.flatten(0, 1) if batch_sizes is None else x
        each, directions = (4 if bias else 2), 1 + bidirectional
        h_n, c_n = [], []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                at = layer * directions + direction
                weights = params[at * each : (at + 1) * each]
                c = None if c_0 is None else c_0[at]
                output, h, c = _one(name, rows, sizes, weights, h_0[at], c, direction == 1)
                outputs.append(output)
                h_n.append(h)
                c_n.append(c)
            rows = torch.cat(outputs, -1)
        output = rows if batch_sizes is not None else rows.unflatten(0, (len(sizes), -1))
        output = output.transpose(0, 1) if batch_first else output
        return (output, torch.stack(h_n), *([torch.stack(c_n)] if name == "lstm" else []))

    return call


def _one(
    name: str,
    rows: Tensor,
    sizes: list[int],
    weights: list[Tensor],
    h_0: Tensor,
    c_0: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Any]:
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    outputs: list[Any] = [None] * rows.shape[0]
    last_h, last_c = [], []
    for b in range(h_0.shape[0]):
        times = [t for t, size in enumerate(sizes) if b < size]
        h, c = h_0[b], None if c_0 is None else c_0[b]
        for t in reversed(times) if reverse else times:
            row = starts[t] + b
            h, c = _step(name, rows[row], h, c, *weights)
            outputs[row] = h
        last_h.append(h)
        last_c.append(c)
    c_n = torch.stack(last_c) if name == "lstm" else None
    return torch.stack(outputs), torch.stack(last_h), c_n


def _step(
    name: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | float = 0.0,
    b_hh: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    from_x, from_h = w_ih @ x + b_ih, w_hh @ h + b_hh
    if name == "rnn_tanh":
        return (from_x + from_h).tanh(), None
    if name == "rnn_relu":
        return (from_x + from_h).relu(), None
    if name == "lstm":
        i, f, g, o = (from_x + from_h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    x_r, x_z, x_n = from_x.chunk(3)
    h_r, h_z, h_n = from_h.chunk(3)
    z = (x_z + h_z).sigmoid()
    return (1 - z) * (x_n + (x_r + h_r).sigmoid() * h_n).tanh() + z * h, None


_DIFFERENTIABLE = ("input", "h_0", "c_0", *(f"param{i:02}" for i in range(32)))
OPS = {
    name: Op(
        _of_functions(_pyops, name),
        _of_functions(_torch, name),
        _of_functions(_formula, name),
        _DIFFERENTIABLE,
    )
    for name in GATES
}


def case(
    name: str,
    op: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    *,
    sizes: tuple[int, ...] | None = None,
    quick: bool = True,
    **options: Any,
) -> Case:
    """``steps`` of ``batch`` sequences, or ``sizes`` of a packed batch; weights as torch initialises them."""
    directions, layers = 1 + options.get("bidirectional", False), options.get("layers", 1)

    def make(g: torch.Generator) -> dict[str, Tensor]:
        scale, gates = hidden**-0.5, GATES[op] * hidden
        shape = (batch, steps, inputs) if options.get("batch_first") else (steps, batch, inputs)
        tensors = {
            "input": normal(g, (sum(sizes), inputs) if sizes else shape, 1.0),
            "h_0": normal(g, (layers * directions, batch, hidden), 0.5),
        }
        if op == "lstm":
            tensors["c_0"] = normal(g, tensors["h_0"].shape, 1.0)
        if sizes:
            tensors["batch_sizes"] = torch.tensor(sizes)
        params = []
        for layer in range(layers):
            features = inputs if layer == 0 else hidden * directions
            for _ in range(directions):
                shapes: list[tuple[int, ...]] = [(gates, features), (gates, hidden)]
                shapes += [(gates,), (gates,)] if options.get("bias", True) else []
                params += [(torch.rand(s, generator=g, dtype=torch.float64) * 2 - 1) * scale for s in shapes]
        return {**tensors, **{f"param{i:02}": p for i, p in enumerate(params)}}

    return Case(f"recurrent_{name}_{op}_{steps}x{batch}x{inputs}_to_{hidden}", op, make, options, quick)


# Backward of the LSTM sums over two blocks; 70 sequences are enough for the path of small layers.
SMOKE = [
    case("smoke", "lstm", 3, 5, 3, 67, sizes=(5, 3, 1), bidirectional=True),
    case("smoke", "gru", 4, 4, 5, 21),
    case("smoke_small", "gru", 3, 70, 5, 19),
    case("smoke_small", "rnn_relu", 2, 65, 3, 7, bias=False),
    case("smoke", "rnn_tanh", 3, 17, 3, 18, sizes=(17, 16, 2), bidirectional=True),
]


# Of each backend and cell: units that end inside vectors, one unit, one step, packed, both directions.
_QUICK = [
    sized
    for op in GATES
    for sized in (
        case("quick", op, 3, 5, 3, 7),
        case("packed", op, 3, 4, 3, 5, sizes=(4, 4, 1)),
        case("one", op, 1, 1, 1, 1),
    )
]
_OPTIONS = [
    case("options", op, 4, 3, 5, 9, sizes=sizes, quick=False, **options)
    for op in GATES
    for sizes in (None, (3, 3, 2, 1))
    for options in (
        {"layers": 2, "bidirectional": True},
        {"bias": False, "bidirectional": True, "batch_first": sizes is None},
        {"bias": False, "layers": 2},
    )
]
# 300 units: two blocks of the products; 70 and 150 sequences: the path of small layers; 17: two micro-tiles.
_SIZES = [
    case("size", op, *shape, quick=False)
    for op in GATES
    for shape in [(3, 3, 5, 300), (5, 70, 3, 33), (2, 17, 40, 64), (3, 150, 7, 16)]
]  # fmt: skip
_RAGGED = [
    case("ragged", op, 5, 80, 3, 17, sizes=(80, 79, 40, 40, 3), bidirectional=True, quick=False)
    for op in GATES
]


CONTRACT = Contract(
    small=[case("small", op, 2, 3, 2, 3) for op in GATES],
    accuracy=over(_QUICK, [torch.float32, torch.float64, torch.float16])
    # Triton's interpreter truncates to bfloat16 where GPUs round, here at every step.
    + over(_QUICK, [torch.bfloat16], [b for b in BACKENDS if str(b) != "triton-cpu"])
    + over(_OPTIONS, [torch.float64, torch.float32])
    + over(_SIZES + _RAGGED, BOTH, [CPP])
    # No block can hold these weights: on GPUs the layers go step by step, forward and backward.
    + over([case("wide", op, 2, 3, 2, 130) for op in GATES], [torch.float64], WITH_KERNELS)
    # Long sequences do not drift. Not the relu's, whose states are not bounded: errors grow as they do.
    + over([case("long", op, 257, 2, 3, 8) for op in ("rnn_tanh", "gru", "lstm")], FLOAT, [CPP]),
    strided_input=over(
        [case("layout", op, 2, 3, 2, 5) for op in GATES],
        backends=WITH_KERNELS,
        layouts=["transposed", "sliced", "expanded"],
    ),
    strided_upstream=over([case("upstream", op, 2, 3, 2, 5) for op in GATES], backends=WITH_KERNELS),
    gradcheck=over(
        [case("gradcheck", op, 2, 3, 2, 3, sizes=(3, 1), bidirectional=True) for op in GATES],
        backends=WITH_KERNELS,
    ),
    opcheck=over([case("opcheck", op, 2, 3, 2, 3, sizes=s) for op in GATES for s in (None, (3, 1))], FLOAT),
    compile=over(
        [
            case("compile", op, 3, 4, 3, 5, **options)
            for op in GATES
            for options in ({"layers": 2, "bidirectional": True, "batch_first": True}, {"sizes": (4, 4, 1)})
        ],
        FLOAT,
        [CPP],
    ),
    same_bits=over(
        [
            *(case("threads", op, *s) for op in GATES for s in [(3, 37, 5, 40), (3, 150, 7, 16)]),
            *(case("threads", op, 4, 90, 5, 16, sizes=(90, 88, 41, 7)) for op in GATES),
        ],
        FLOAT,
        [CPP],
    ),
    autocast=(),  # of the modules, as torch.nn's are cast: test_recurrent.py
)


def valid_arguments() -> dict[str, tuple]:
    x, w_ih, w_hh, b = torch.randn(3, 2, 5), torch.randn(12, 5), torch.randn(12, 3), torch.randn(12)
    h, y, gates, extra = torch.randn(2, 3), torch.randn(3, 2, 3), torch.rand(6, 12), torch.randn(6, 3)
    sizes = torch.tensor([2, 2, 1, 1])
    return {
        "recurrent_forward": (x.view(6, 5), w_ih, w_hh, b, b, h, h, sizes, 2, True, True),
        "recurrent_backward": (
            y, h, h, x, w_ih, w_hh, h, h, y, gates, extra, None, 2, False, True, True, True, True,
        ),
    }  # fmt: skip


def run_sanitized(ops: Any) -> None:
    """Loops of more than one block and steps, packed and dense, and what neither needs."""
    for kind, gates in enumerate((1, 1, 4, 3)):
        small = itertools.product((torch.float32, torch.bfloat16), (1, 5, 33), (None, [3, 3, 1]))
        # Of which a block has some of the units.
        large = [(torch.float32, 80, None), (torch.bfloat16, 136, [3, 3, 1])] if gates > 2 else []
        for dtype, hidden, sizes in [*small, *large]:
            batch, rows = (18, 36) if sizes is None else (3, 7)
            x = torch.rand(rows, 3).to(dtype)
            x, packed = (x.view(2, batch, 3), None) if sizes is None else (x, torch.tensor(sizes))
            w_ih, w_hh = torch.rand(gates * hidden, 3).to(dtype), torch.rand(gates * hidden, hidden).to(dtype)
            h = torch.rand(batch, hidden).to(dtype)
            c = h if kind == 2 else None
            for reverse in (False, True):
                y, h_n, _, saved, extra = ops.recurrent_forward(
                    x, w_ih, w_hh, None, None, h, c, packed, kind, reverse, True
                )
                ops.recurrent_backward(
                    y, h_n, None, x, w_ih, w_hh, h, c, y, saved, extra, packed, kind, reverse,
                    True, True, True, True,
                )  # fmt: skip


# What other blocks have written is read 16 bytes at once and past the L1 cache, which may be stale.
_SHARED = (r"LDS\.128", r"LDG\.E\.128\.STRONG\.GPU", r"LDG\.E\.STRONG\.GPU", r"MEMBAR\.\w+\.GPU")
CUDA_CODE = {
    "grid": [
        Code(has=("HMMA", *_SHARED), kernels="TensorCores"),
        Code(has=_SHARED, lacks=("HMMA",), kernels="^(?!.*TensorCores)"),
    ]
}


def _triton(
    kind: int, steps: int, batch: int, inputs: int, hidden: int, dtype: torch.dtype, tf32: bool = False
) -> None:
    """The time loops; of the products around them, which gemm's cases have, only the one of forward."""
    precision = "tf32" if tf32 else "ieee"
    recurrent, products = torch.backends.cudnn.rnn, torch.backends.cuda.matmul  # a single step asks both
    with fp32_precision(recurrent, precision), fp32_precision(products, precision):
        _triton_loops(kind, steps, batch, inputs, hidden, dtype)


def _triton_loops(kind: int, steps: int, batch: int, inputs: int, hidden: int, dtype: torch.dtype) -> None:
    from pyops.triton_kernels.recurrent import recurrent

    gates = recurrent._GATES[kind] * hidden
    x, w_ih, w_hh = (
        meta(*shape, dtype=dtype) for shape in [(steps, batch, inputs), (gates, inputs), (gates, hidden)]
    )
    bias, h = meta(gates, dtype=dtype), meta(batch, hidden, dtype=dtype)
    c = h if kind == 2 else None
    y, h_n, c_n, saved, extra = recurrent.recurrent_forward(
        x, w_ih, w_hh, bias, bias, h, c, None, kind, False, True
    )
    recurrent.recurrent_backward(
        y, h_n, c_n if kind == 2 else None, x, w_ih, w_hh, h, c, y, saved, extra, None, kind, False,
        False, False, False, False,
    )  # fmt: skip


TRITON_CASES = {
    "recurrent-lstm-loop-bfloat16": lambda: _triton(2, 3, 64, 128, 128, BF16),
    "recurrent-gru-loop-float32": lambda: _triton(3, 3, 1024, 28, 32, F32),
    "recurrent-lstm-steps-float32": lambda: _triton(2, 1, 32, 28, 256, F32),
    "recurrent-lstm-steps-tf32": lambda: _triton(2, 1, 32, 28, 256, F32, tf32=True),
    "recurrent-gru-loop-tf32": lambda: _triton(3, 3, 1024, 28, 32, F32, tf32=True),
    "recurrent-relu-odd-float64": lambda: _triton(1, 2, 7, 5, 33, F64),
}


MUTANTS = {
    "gru_reset_gate_ignores_what_it_resets": Mutant(
        "math/recurrent.h", "dn * s_n * r * (one - r)", "dn * r * (one - r)", ("recurrent/recurrent",)
    ),
    "lstm_forgets_the_gradient_of_its_cell": Mutant(
        "math/recurrent.h", "dc_after + dh * o", "dh * o", ("recurrent/recurrent",)
    ),
    "recurrent_sequences_end_a_step_late": Mutant(
        "cpu/recurrent/steps.h", "sequence < count ?", "sequence <= count ?", ("recurrent/recurrent",)
    ),
    "recurrent_shares_begin_at_the_second": Mutant(
        "cpu/recurrent/gradients.h",
        "for (int64_t i = 0; i < count; ++i)",
        "for (int64_t i = 1; i < count; ++i)",
        ("recurrent/recurrent",),
    ),
    "recurrent_small_layers_keep_the_last_steps_only": Mutant(
        "cpu/recurrent/gradients.h", "adds = true;", "adds = false;", ("recurrent/recurrent",)
    ),
    "prepacked_product_keeps_the_last_block_only": Mutant(
        "cpu/gemm/prepacked.h", "k == 0 && !adds", "!adds", ("recurrent/recurrent",)
    ),
}


def check_final_states(backend: Backend) -> None:
    """h_n is the output at the last step of each sequence, in either direction."""
    found = OPS["rnn_tanh"].pyops(**SMOKE[-1].tensors(torch.float32), **SMOKE[-1].options)
    output, h_n = found[0], found[1]
    lengths = [3, 3, *[2] * 14, 1]
    starts = [0, 17, 33]
    for b, length in enumerate(lengths):
        assert torch.equal(h_n[0, b], output[starts[length - 1] + b, :18])
        assert torch.equal(h_n[1, b], output[b, 18:])


def check_gradients_of_parts(backend: Backend) -> None:
    """Many sequences in a small layer: their parameters' gradients are those of two parts, cut otherwise."""
    if backend.name != "cpp":  # the others have no path of their own for such layers
        return
    steps, batch, inputs, hidden = 40, 65, 3, 7
    x, h = torch.randn(steps, batch, inputs), torch.randn(1, batch, hidden)
    shapes = [(hidden, inputs), (hidden, hidden), (hidden,), (hidden,)]
    params = [(torch.rand(shape) - 0.5).requires_grad_() for shape in shapes]

    def gradients(part: slice) -> tuple[Tensor, ...]:
        output, _ = F.rnn_tanh(x[:, part], h[:, part], params, True, 1, 0.0, True, False)
        return torch.autograd.grad(output.square().sum(), params)

    parts = zip(gradients(slice(0, 33)), gradients(slice(33, None)), strict=True)
    for whole, (first, second) in zip(gradients(slice(None)), parts, strict=True):
        torch.testing.assert_close(whole, first + second, rtol=1e-5, atol=1e-4)


SMOKE_CHECKS = {
    "recurrent_final_states": check_final_states,
    "recurrent_gradients_of_parts": check_gradients_of_parts,
}
