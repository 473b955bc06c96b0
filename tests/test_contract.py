"""The checks that all ops have in common, over the cases that each op's contract in ``suite/ops`` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pyops.functional as F
from tests.suite import checks, ops
from tests.suite.backends import BACKENDS, THOROUGH, WITH_KERNELS, Backend
from tests.suite.cases import DTYPES, Case, combinations
from tests.suite.contract import BOTH, FLOAT, Contract
from tests.suite.layouts import LAYOUTS

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def contracts() -> Iterator[tuple[str, Contract]]:
    for module in ops.MODULES:
        if contract := getattr(module, "CONTRACT", None):
            yield module.__name__.rpartition(".")[2], contract


def sweep(
    check: str,
    dtypes: Iterable[torch.dtype] = BOTH,
    backends: Iterable[Backend] = BACKENDS,
    layouts: Iterable[str] | None = None,
    nightly: str = "",
) -> pytest.MarkDecorator:
    """Parametrise over what the contracts say of ``check``; what they leave open is said here.

    ``nightly``: the backend of which other checks find most of what this one finds.
    """
    names = ["backend", "case", "dtype", "layout"][: 3 if layouts is None else 4]
    found = []
    for name, contract in contracts():
        for s in contract.sweeps(check):
            axes = [s.backends or backends, s.cases, s.dtypes or dtypes, s.layouts or layouts]
            for values in combinations(*axes[: len(names)]):
                id = "-".join([name, *(str(v).removeprefix("torch.") for v in values)])
                marks = [pytest.mark.nightly] if str(values[0]) == nightly else []
                found.append(pytest.param(*values, id=id, marks=marks))
    return pytest.mark.parametrize(names, found, indirect=["backend"])


def test_every_op_has_a_contract() -> None:
    promised = {name for name, _ in contracts()}
    assert {m.__name__.rpartition(".")[2] for m in ops.MODULES if hasattr(m, "OPS")} == promised


@sweep("accuracy", DTYPES)
def test_accuracy(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_accuracy(case, backend, dtype)


@sweep("strided_input", FLOAT, layouts=LAYOUTS)
def test_strided_input(backend: Backend, case: Case, dtype: torch.dtype, layout: str) -> None:
    checks.check_accuracy(case, backend, dtype, layout=layout)


@pytest.mark.parametrize("upstream", [checks.strided_upstream, checks.expanded_upstream])
@sweep("strided_upstream", FLOAT)
def test_strided_upstream_gradients(
    backend: Backend, case: Case, dtype: torch.dtype, upstream: Callable[[Tensor], Tensor]
) -> None:
    checks.check_accuracy(case, backend, dtype, upstream_layout=upstream)


@sweep("gradcheck", [torch.float64])
def test_gradcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_gradcheck(case, backend)


@sweep("opcheck", backends=WITH_KERNELS)
def test_opcheck(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_opcheck(case, backend, dtype)


@sweep("no_host_sync", FLOAT)
def test_no_host_synchronisation(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_no_host_sync(case, backend, dtype)


@sweep("compile", backends=THOROUGH, nightly="reference")
def test_compile_fullgraph_equals_eager(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_compile(case, backend, dtype)


@sweep("same_bits", backends=WITH_KERNELS)
@pytest.mark.usefixtures("threads")
def test_same_bits_for_every_thread_count_and_run(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    checks.check_determinism(case, backend, dtype)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@sweep("autocast")
def test_autocast_gives_torchs_dtypes(
    backend: Backend, case: Case, dtype: torch.dtype, amp: torch.dtype
) -> None:
    checks.same_as_torch_autocast(case, backend, dtype, amp)


_META = [case for _, contract in contracts() for s in contract.sweeps("meta") for case in s.cases]


@pytest.mark.parametrize("case", _META, ids=str)
def test_meta_tensors_give_shapes(case: Case) -> None:
    checks.check_meta(case)


_REFUSED = [
    pytest.param(op, arguments, contract.raw_ops or op, id=f"{op}-{i}")
    for _, contract in contracts()
    for i, (op, arguments) in enumerate(contract.raw_op_refuses)
]


@pytest.mark.parametrize(("op", "arguments", "message"), _REFUSED)
def test_raw_op_refuses(kernels: Backend, op: str, arguments: tuple[Any, ...], message: str) -> None:
    checks.check_raw_op_refuses(kernels, op, arguments, message)


_MISTAKES = [
    pytest.param(*mistake, id=f"{mistake[0]}-{i}")
    for _, contract in contracts()
    for i, mistake in enumerate(contract.bad_arguments)
]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize(("function", "error", "message", "arguments", "options"), _MISTAKES)
def test_bad_argument_is_named(
    function: str,
    error: type[Exception],
    message: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    with pytest.raises(error, match=f"{function}: {message}"):
        getattr(F, function)(*arguments, **options)
