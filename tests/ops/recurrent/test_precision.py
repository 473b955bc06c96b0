"""Whether float32 on CUDA is rounded to TF32: torch's switch for recurrent layers decides, for all products
of a layer, and not the one for matrix products. Torch's cells follow that."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from tests.suite import checks
from tests.suite.backends import CUDA_SOURCES, TRITON, Backend
from tests.suite.cases import Case
from tests.suite.ops.recurrent import OPS, case
from tests.suite.processes import run_python
from tests.suite.triton_cases import fp32_precision

pytestmark = pytest.mark.usefixtures("nan_filled_memory")

#: More units than one block has, so that the loop is on tensor cores where it may.
HIDDEN = 80
#: Units that are no whole number of 16 bytes: a product per step.
ODD_HIDDEN = 81

Switch = Callable[..., None]


@pytest.fixture
def switch() -> Iterator[Switch]:
    """Sets torch's switches for recurrent layers and for matrix products."""
    with ExitStack() as stack:

        def set_switches(*, rnn: str, matmul: str) -> None:
            stack.enter_context(fp32_precision(torch.backends.cudnn.rnn, rnn))
            stack.enter_context(fp32_precision(torch.backends.cuda.matmul, matmul))

        yield set_switches


def largest_errors(sized: Case, backend: Backend) -> dict[str, float]:
    """Of each result against the float64 formula, relative to the largest value."""
    tensors = sized.tensors(torch.float32)
    exact = {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}
    wanted = checks.run(OPS[sized.op].formula, sized, exact)
    found = checks.run(OPS[sized.op].pyops, sized, checks.on_device(tensors, backend.device))
    return {
        name: float((value.double().cpu() - wanted[name]).abs().max() / wanted[name].abs().max())
        for name, value in found.items()
    }


@pytest.mark.parametrize("backend", CUDA_SOURCES, ids=str, indirect=True)
def test_the_switch_of_recurrent_layers_rounds_the_factors_and_nothing_else(
    backend: Backend, switch: Switch
) -> None:
    """Within a few times TF32's 2^-11 of the largest value, and not what float32 would give."""
    switch(rnn="tf32", matmul="ieee")
    errors = largest_errors(case("tf32", "lstm", 2, 5, 3, HIDDEN), backend)
    assert max(errors.values()) < 2**-9
    assert errors["output 0"] > 2**-20


@pytest.mark.parametrize("hidden", [HIDDEN, ODD_HIDDEN])
@pytest.mark.parametrize("op", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("backend", CUDA_SOURCES, ids=str, indirect=True)
def test_the_switch_of_products_rounds_no_recurrent_layer(
    backend: Backend, switch: Switch, op: str, hidden: int
) -> None:
    """Nor is any product left to torch, which would round it."""
    switch(rnn="ieee", matmul="tf32")
    sized = case("exact", op, 3, 70, 35, hidden, sizes=(70, 30, 2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        tensors = checks.on_device(sized.tensors(torch.float32), backend.device)
        checks.run(OPS[op].pyops, sized, tensors)
    called = {event.key for event in profile.key_averages()}
    assert any("recurrent_backward" in name for name in called)
    assert "aten::mm" not in called
    assert max(largest_errors(sized, backend).values()) < 2**-19


@pytest.mark.parametrize("backend", CUDA_SOURCES, ids=str, indirect=True)
def test_a_cell_follows_the_switch_of_products(backend: Backend, switch: Switch) -> None:
    switch(rnn="tf32", matmul="ieee")
    assert max(largest_errors(case("cell", "lstm", 1, 5, 3, HIDDEN), backend).values()) < 2**-19


@pytest.mark.parametrize(
    ("rnn", "matmul", "steps", "rounded"),
    [
        ("tf32", "ieee", 2, True),
        ("ieee", "tf32", 2, False),
        ("tf32", "ieee", 1, False),
        ("tf32", "tf32", 1, True),
    ],
)
@pytest.mark.parametrize("backend", [TRITON], ids=str, indirect=True)
def test_triton_passes_the_switch_to_every_product(
    backend: Backend, switch: Switch, monkeypatch: pytest.MonkeyPatch,
    rnn: str, matmul: str, steps: int, rounded: bool,
) -> None:  # fmt: skip
    from pyops.triton_kernels import gemm
    from pyops.triton_kernels.recurrent import recurrent

    asked = []

    def noting(launch: Callable[..., Any]) -> Callable[..., Any]:
        def note(*arguments: Any, **meta: Any) -> Any:
            asked.append("tf32" in str(meta))
            return launch(*arguments, **meta)

        return note

    for module in (gemm, recurrent):
        monkeypatch.setattr(module, "launch", noting(module.launch))
    switch(rnn=rnn, matmul=matmul)
    sized = case("switch", "gru", steps, 3, 2, 4)
    checks.run(OPS["gru"].pyops, sized, checks.on_device(sized.tensors(torch.float32), backend.device))
    assert len(asked) >= 6  # two loops and at least four products
    assert set(asked) == {rounded}


def test_switches_are_read_as_torch_reads_them() -> None:
    """A switch that is "none" follows the one above it; the older names set the same switches, and their
    being read raises once both names were used."""
    script = """
import torch, pyops
b, ask = torch.backends, torch.ops.pyops
def told(): return ask.recurrent_allows_tf32(2), ask.conv2d_allows_tf32(), ask.matmul_allows_tf32()
answers = [told()]
b.cudnn.allow_tf32 = False; answers.append(told())
b.fp32_precision = "tf32"; answers.append(told())
b.cudnn.fp32_precision = "ieee"; answers.append(told())
b.cudnn.rnn.fp32_precision = "tf32"; answers.append(told())
b.cuda.matmul.fp32_precision = "ieee"; answers.append(told())
print(answers)
"""
    assert ast.literal_eval(run_python("-W", "ignore", "-c", script).stdout) == [
        (True, True, False),  # torch's defaults
        (False, False, False),
        (True, True, True),
        (False, False, False),
        (True, False, False),
        (True, False, False),
    ]
