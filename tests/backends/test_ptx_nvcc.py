"""The backend ``ptx``: kernels are found, they may touch the call's memory alone, faults reach the caller.

What the kernels compute is in the tests that run on every backend; here, that it is what the emulator
computes wherever nothing is rounded.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pyops
import pyops.functional as F
from tests.ptx_machine import elf, host, machine, nvcc
from tests.suite import checks
from tests.suite.backends import BACKENDS, Backend, activate
from tests.suite.cases import Case
from tests.suite.ops import MODULES, OPS

PTX, EMULATED = (next(b for b in BACKENDS if b.name == name) for name in ("ptx", "emulated"))

pytestmark = pytest.mark.skipif(nvcc.missing_reason() is not None, reason=str(nvcc.missing_reason()))


@pytest.fixture(autouse=True)
def _loaded() -> None:
    activate(EMULATED)
    activate(PTX)


# ---- names -----------------------------------------------------------------------------------------------


def test_anonymous_namespaces_have_one_name() -> None:
    names = [
        "_ZN5pyops4cuda48_GLOBAL__N__4d7c142b_10_softmax_cu_5d85ffcb_70947forwardIfEEvPT_",
        "_ZN5pyops4cuda46_INTERNAL_4d7c142b_10_softmax_cu_5d85ffcb_70947forwardIfEEvPT_",
        "_ZN5pyops4cuda12_GLOBAL__N_17forwardIfEEvPT_",
    ]
    assert {nvcc.normalised(name) for name in names} == {names[2]}
    assert nvcc.normalised("_ZN5pyops4cuda7forwardIfEEvPT_") == "_ZN5pyops4cuda7forwardIfEEvPT_"


def test_every_entry_has_the_address_of_one_host_function() -> None:
    kernels = nvcc.kernels()
    assert max(Counter(k.offset for k in kernels).values()) == 1
    bound = {(k.source, k.entry) for k in kernels}
    # What has a name of its own, as templates outside anonymous namespaces have, is bound in one source.
    anywhere = {k.entry for k in kernels if "_GLOBAL__N_" not in k.entry and "_INTERNAL_" not in k.entry}
    entries = [(source, entry) for source, names in nvcc.entries().items() for entry in names.values()]
    assert len(entries) > 500
    assert not [e for e in entries if e not in bound and e[1] not in anywhere]


def test_normalised_names_stay_apart() -> None:
    for source, path in nvcc.ptx_files().items():
        names = re.findall(r"\.entry\s+([\w$]+)", path.read_text())
        assert len(set(names)) == len(nvcc.entries()[source]), source


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_symbols_are_those_that_nm_lists() -> None:
    library = Path(nvcc.emulation.build_ops())
    listed = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    wanted = {
        (int(address, 16), name) for address, name in re.findall(r"^(\w+) [tTW] (\S+)$", listed, re.MULTILINE)
    }
    found = {(f.offset, f.name) for f in elf.functions(library)}
    assert len(found) > 1000
    assert found <= wanted
    # The linker's own names for places in the code are no functions.
    assert {name for _, name in wanted - found} <= {"_init", "_fini", "pyops_switch_stack"}


def test_a_library_without_symbols_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.so"
    file.write_text("no library")
    with pytest.raises(ValueError, match="no 64-bit little-endian ELF file"):
        list(elf.functions(file))


@pytest.mark.parametrize("source", nvcc.cuda_library.SOURCES)
def test_every_entry_parses(source: str) -> None:
    module = machine.Module(nvcc.ptx_files()[source].read_text(), source)
    assert sorted(module.entries) == sorted(nvcc.entries()[source].values())


# ---- results ---------------------------------------------------------------------------------------------

#: Ops that copy, compare, mask, or add in a fixed order.
EXACT = ("max_pool2d", "embedding", "dropout", "interpolate")
_SMOKE: list[Case] = [c for m in MODULES for c in getattr(m, "SMOKE", ())]
_DTYPES = [torch.float32, torch.bfloat16]


def smoke_results(case: Case, dtype: torch.dtype, backend: Backend) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with pyops.use_backend(backend.name):
        return checks.run(OPS[case.op].pyops, case, case.tensors(dtype))


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in _SMOKE if case.op in EXACT], ids=str)
def test_exact_results_have_the_emulators_bits(case: Case, dtype: torch.dtype) -> None:
    before = sum(nvcc.launches().values())
    results = [smoke_results(case, dtype, backend) for backend in (EMULATED, PTX)]
    assert sum(nvcc.launches().values()) > before
    checks.assert_bit_equal(*results, "between the emulator and nvcc's PTX")


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("case", _SMOKE, ids=str)
def test_every_order_of_warps_and_blocks_gives_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    results = []
    try:
        for seed in (0, 1):
            machine.set_seed(seed)
            results.append(smoke_results(case, dtype, PTX))
    finally:
        machine.set_seed(0)
    checks.assert_bit_equal(*results, "between orders")


def test_threads_choose_for_themselves() -> None:
    """Launches of one thread go to the machine while those of another stay with the emulator."""
    x = torch.randn(7, 300)
    wanted = x.double().softmax(1)

    def run(namespace: str) -> None:
        for _ in range(20):
            y = getattr(torch.ops, namespace).softmax_forward(x, 1, False)
            torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-6)

    before = sum(nvcc.launches().values())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, ["pyops_emulated", "pyops_ptx"] * 2))
    assert sum(nvcc.launches().values()) - before == 40


# ---- memory ----------------------------------------------------------------------------------------------


def test_kernels_may_not_touch_what_the_call_was_not_given() -> None:
    x = torch.randn(3, 5)
    torch.ops.pyops_ptx.softmax_forward(x, 1, False)
    use = nvcc._emulated().pyops_emulation_use
    before = use(host.library().ptx_launcher())
    try:
        with pytest.raises(
            RuntimeError, match=r"softmax_forward_kernel<float.*, grid \(1, 1, 1\).* in no tensor"
        ):
            torch.ops.pyops_emulated.softmax_forward(x, 1, False)
    finally:
        use(before)


def test_memory_has_guard_zones() -> None:
    tensors = [torch.empty(n, dtype=torch.uint8) for n in (1, 64, 65, 4096, 100_000)]
    spans = sorted((t.data_ptr(), t.data_ptr() + t.numel()) for t in tensors)
    assert all(start % 64 == 0 for start, _ in spans)
    assert all(start - end >= 512 for (_, end), (start, _) in itertools.pairwise(spans))


def test_memory_survives_resizing_and_other_threads() -> None:
    """Storages grow, and are freed by a thread that did not allocate them."""

    def allocate(n: int) -> torch.Tensor:
        return torch.full((n,), float(n)).resize_(2 * n + 1)

    with ThreadPoolExecutor(2) as pool:
        tensors = list(pool.map(allocate, range(1, 200)))
    assert [t[0].item() for t in tensors] == [float(n) for n in range(1, 200)]


# ---- faults ----------------------------------------------------------------------------------------------


def softmax_in_a_block() -> torch.Tensor:
    return F.softmax(torch.randn(2, 20011), 1)


def batch_norm_kept_on_chip() -> torch.Tensor:
    return F.batch_norm(torch.randn(5, 3, 7, 19), None, None, training=True)


@pytest.mark.parametrize(
    ("source", "call", "kernel"),
    [
        ("softmax", softmax_in_a_block, "softmax_forward_kernel<float"),
        ("batch_norm", batch_norm_kept_on_chip, "batch_norm_forward_kernel<float"),
    ],
)
def test_a_global_store_into_shared_memory_is_found(
    source: str, call: Callable[[], torch.Tensor], kernel: str
) -> None:
    """What nvcc makes of `__stwb` on a shared address: no emulator of the source can see it."""

    def plant(ptx: str) -> str:
        return re.sub(
            r"\bst\.shared\.([\w.]+) \[(%r\d+)(\+\d+)?\], (%\w+|{[^}]*});",
            r"{ .reg .b64 %planted; cvt.u64.u32 %planted, \2; cvta.shared.u64 %planted, %planted; "
            r"st.global.\1 [%planted\3], \4; }",
            ptx,
        )

    complaint = f"PTX machine: {kernel}.*st.global.*a global access to an address of shared memory"
    with pyops.use_backend("ptx"):
        with nvcc.replaced(source, plant), pytest.raises(RuntimeError, match=complaint):
            call()
        assert call().isfinite().all()
