"""Triton kernels compile to GPU machine code, without a GPU.

The launchers are called on meta tensors with launches recorded instead of run, and Triton's own
just-in-time compiler then builds what was recorded. So tile sizes, specialisation and options are
those of a real call. A subprocess does it, because an interpreted Triton (``TRITON_INTERPRET=1``)
cannot compile, and this process may be running one.

What is asserted of each kernel: machine code exists, it spills no registers to memory and fits into shared
memory; of 16-bit and TF32 matrix products: they run on tensor cores, and TF32 operands are rounded. Of
each float argument: the kernel declares its type, and float32 only for what a float32 can hold.
"""

import contextlib
import ctypes
import functools
import io
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.suite.ops import joined
from tests.suite.processes import one_at_a_time, shared_folder

# By name; recurrent's loops, which take longest, are among the first.
CASES = dict(reversed(joined("TRITON_CASES").items()))
CAPABILITIES = (80, 90, 100)
#: Compiled together. What Blackwell's need is left to `make nightly`, as nvcc's machine code for it is.
TOGETHER = {80: (80, 90), 90: (80, 90), 100: (100,)}
_each_capability = pytest.mark.parametrize(
    "capability", [80, 90, pytest.param(100, marks=pytest.mark.nightly)], ids=lambda c: f"sm_{c}"
)

# What a thread block may use; for 8.x on its smallest member, 8.6.
SHARED_BYTES = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}

# Kernels that multiply in TF32 in at least one case.
_TF32_KERNELS = {
    "_correlate_kernel", "_correlate_and_pool_kernel", "_weight_kernel", "_gemm_kernel", "forward_kernel",
    "backward_kernel",
}  # fmt: skip

# Kernels that read whole vectors, by a pattern of cases; the compiler has to know of alignment for that.
_VECTORS = {
    "activation-": {"_forward_kernel", "_backward_kernel"},
    "batch_norm-residual-relu-channels_last-bfloat16": {
        "statistics_kernel", "normalize_kernel", "gradient_sums_kernel", "input_gradient_kernel",
    },
    "conv2d-(channels_last|float64|float32)": {"_correlate_kernel", "_weight_kernel"},
    "cross_entropy-(vocabulary|inner-float16)": {"forward_kernel", "backward_kernel"},
    "dropout-(float|odd)": {"_forward_kernel"},
    "gemm-(nn|nt|tn|small)": {"_gemm_kernel"},
    "linear-": {"_gemm_kernel", "_forward_kernel"},
    "log_softmax-": {"_forward_kernel", "_backward_kernel"},
    "mse_loss-": {"_forward_kernel", "_backward_kernel"},
    "prelu-(one|columns)": {"_columns_kernel"},
}  # fmt: skip
_READS_16_BYTES = re.compile(r"ld\.global\S*\.v(4\.\w32|2\.\w64)|cp\.async\S* [^;]*, (0x10|16),")

# A single 16-bit element. In kernels of products such reads go through registers, and nothing runs ahead.
_READS_2_BYTES = re.compile(r"ld\.global(\.\w+)*\.b16 ")
_PRODUCT_KERNELS = {"_gemm_kernel", "_correlate_kernel", "_weight_kernel"}

# Of a GPU's few float64 units, and a function of a hundred instructions.
_COSTLY = re.compile(r"(?:add|mul|fma\.rn|div\.rn|sqrt\.rn|setp\.\w+)\.f64|(?:div|rem)\.[su]64")

# Kernels in which every element has its thread, by a pattern of cases without float64 and 2^31 elements.
_PASSES = {
    "batch_norm-": {"normalize_kernel", "input_gradient_kernel"},
    "(max|avg)_pool2d-": {"_forward_kernel", "_backward_kernel"},
}

# The assembler at times gives up a few registers outside a loop so that more warps fit.
TOLERATED_SPILL = 16


# ------------------------------------------------------------------------- the compiling subprocess


class _StandInDriver:
    """Tells Triton's just-in-time compiler which GPU to compile for. Nothing is ever run."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # the compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


# By kernel hash: the assembler speaks only when a kernel is compiled, not when it is found compiled.
_spilled_bytes: dict[str, int] = {}


def _compile(job: tuple[str, int]) -> list[dict[str, Any]]:
    """Compile every kernel that case ``job[0]`` launches for capability ``job[1]``."""
    import triton
    from pyops.triton_kernels.tools.launch import record_launches

    case, capability = job
    # Spills are known only from what the assembler says, so it has to run.
    triton.knobs.compilation.always_compile = True
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.runtime.driver.set_active(_StandInDriver(capability))
    results = []
    with record_launches(divmod(capability, 10)) as launches:
        CASES[case]()
    for launch in launches:
        with contextlib.redirect_stdout(io.StringIO()) as assembler_log:
            compiled = launch.kernel.warmup(*launch.args, grid=(1,), **launch.meta)
        for count in re.findall(r"(\d+) bytes spill stores", assembler_log.getvalue()):
            _spilled_bytes[compiled.hash] = int(count)
        ptx = compiled.asm["ptx"]
        results.append(
            {
                "kernel": launch.kernel.__name__,
                "lost_floats": _lost_floats(launch),
                "multiplies_tf32": bool(re.search(r"mma\S*(\.|::)tf32", ptx)),
                "rounds_to_tf32": "cvt.rna.tf32.f32" in ptx,
                "reads_16_bytes": bool(_READS_16_BYTES.search(ptx)),
                "reads_2_bytes": bool(_READS_2_BYTES.search(ptx)),
                "costly": sorted(set(_COSTLY.findall(ptx))),
                "cubin_bytes": len(compiled.asm["cubin"]),
                "spilled_bytes": _spilled_bytes[compiled.hash],
                "shared_bytes": compiled.metadata.shared,
                "tensor_core": sorted(set(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", ptx))),
            }
        )
    return results


def _lost_floats(launch: Any) -> list[str]:
    """Parameters whose float argument does not reach the kernel as it is, or only by its value's luck.

    Triton passes Python's floats as float32 unless the parameter says otherwise. A named tuple cannot.
    """
    lost = []
    for parameter, argument in zip(launch.kernel.params, launch.args, strict=False):
        floats = argument if isinstance(argument, tuple) else (argument,)
        declared = "" if isinstance(argument, tuple) else parameter.annotation_type
        for value in floats:
            if isinstance(value, float) and not (
                declared == "fp64" or (declared == "fp32" and _is_float32(value))
            ):
                lost.append(parameter.name)
    return lost


def _is_float32(value: float) -> bool:
    return ctypes.c_float(value).value == value


def _main(path: str, capabilities: list[int]) -> None:
    jobs = [(case, capability) for case in CASES for capability in capabilities]
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(_compile, jobs))
    keyed = {f"{case}-sm_{cc}": result for (case, cc), result in zip(jobs, results, strict=True)}
    Path(path).write_text(json.dumps(keyed))


# -------------------------------------------------------------------------------------------- tests


@pytest.fixture
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """The kernels by case and capability: for the test's capability, and others that come with it."""
    pytest.importorskip("triton")
    capabilities = TOGETHER[request.node.callspec.params.get("capability", CAPABILITIES[0])]
    return _compiled(shared_folder(tmp_path_factory) / "triton", capabilities)


@functools.cache
def _compiled(folder: Path, capabilities: tuple[int, ...]) -> dict[str, list[dict[str, Any]]]:
    with one_at_a_time(folder / "lock"):
        path = folder / f"results_{'_'.join(map(str, capabilities))}.json"
        if not path.exists():
            _compile_all(path, capabilities)
        return json.loads(path.read_text())


def _compile_all(path: Path, capabilities: tuple[int, ...]) -> None:
    import pyops

    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYOPS_BACKEND")}
    environment["PYTHONPATH"] = str(Path(pyops.__file__).parents[1])
    environment["TRITON_CACHE_DIR"] = str(path.parent)  # runs side by side must not find each other's files
    run = subprocess.run(
        [sys.executable, __file__, str(path), *map(str, capabilities)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-5000:]


@_each_capability
@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_without_spills(
    compiled: dict[str, list[dict[str, Any]]], case: str, capability: int
) -> None:
    kernels = compiled[f"{case}-sm_{capability}"]
    assert kernels
    for kernel in kernels:
        assert kernel["cubin_bytes"] > 0
        assert kernel["spilled_bytes"] <= TOLERATED_SPILL, f"{kernel['kernel']} spills registers"
        assert kernel["shared_bytes"] <= SHARED_BYTES[capability]


@pytest.mark.parametrize("case", CASES)
def test_floats_reach_kernels_unrounded(compiled: dict[str, list[dict[str, Any]]], case: str) -> None:
    lost = {kernel["kernel"]: kernel["lost_floats"] for kernel in compiled[f"{case}-sm_{CAPABILITIES[0]}"]}
    assert not any(lost.values()), f"not declared as tl.float64 (or tl.float32): {lost}"


@_each_capability
def test_operands_are_rounded_to_tf32(compiled: dict[str, list[dict[str, Any]]], capability: int) -> None:
    products = [
        (case, kernel["kernel"], kernel["rounds_to_tf32"])
        for case, kernels in compiled.items()
        if case.endswith(f"-sm_{capability}")
        for kernel in kernels
        if kernel["multiplies_tf32"]
    ]
    assert {kernel for _case, kernel, _rounds in products} >= _TF32_KERNELS
    assert not [product for product in products if not product[2]], "operands are cut off, not rounded"


@_each_capability
@pytest.mark.parametrize("pattern", _VECTORS)
def test_memory_is_read_16_bytes_at_a_time(
    compiled: dict[str, list[dict[str, Any]]], pattern: str, capability: int
) -> None:
    kernels = [
        (case, kernel["kernel"], kernel["reads_16_bytes"])
        for case in CASES
        if re.match(pattern, case)
        for kernel in compiled[f"{case}-sm_{capability}"]
        if kernel["kernel"] in _VECTORS[pattern]
    ]
    assert {name for _case, name, _reads in kernels} == _VECTORS[pattern]
    assert not [kernel for kernel in kernels if not kernel[2]]


@_each_capability
@pytest.mark.parametrize("case", [case for case in CASES if "-eights-" in case])
def test_products_read_vectors_where_sizes_are_multiples_of_8(
    compiled: dict[str, list[dict[str, Any]]], case: str, capability: int
) -> None:
    kernels = [k for k in compiled[f"{case}-sm_{capability}"] if k["kernel"] in _PRODUCT_KERNELS]
    assert kernels
    for kernel in kernels:
        assert kernel["reads_16_bytes"], kernel["kernel"]
        # Of channels x pixels, an epilogue reads the bias element by element.
        assert not kernel["reads_2_bytes"] or "pointwise" in case, kernel["kernel"]


@_each_capability
@pytest.mark.parametrize("pattern", _PASSES)
def test_passes_over_elements_compute_nothing_in_64_bits(
    compiled: dict[str, list[dict[str, Any]]], pattern: str, capability: int
) -> None:
    kernels = [
        (case, kernel["kernel"], kernel["costly"])
        for case in CASES
        if re.match(pattern, case) and "float64" not in case
        for kernel in compiled[f"{case}-sm_{capability}"]
        if kernel["kernel"] in _PASSES[pattern]
    ]
    assert {name for _case, name, _costly in kernels} == _PASSES[pattern]
    assert not [kernel for kernel in kernels if kernel[2]]


_PRODUCTS = {
    case: kernels
    for pattern, kernels in joined("TRITON_PRODUCTS").items()
    for case in CASES
    if re.match(pattern, case)
}


@_each_capability
@pytest.mark.parametrize("case", _PRODUCTS)
def test_products_use_tensor_cores(
    compiled: dict[str, list[dict[str, Any]]], case: str, capability: int
) -> None:
    wanted = _PRODUCTS[case]
    kernels = [k for k in compiled[f"{case}-sm_{capability}"] if k["kernel"] in wanted]
    assert [k["kernel"] for k in kernels] == wanted
    for kernel in kernels:
        assert kernel["tensor_core"], f"no tensor-core instruction in {kernel['kernel']}"


if __name__ == "__main__":
    _main(sys.argv[1], [int(capability) for capability in sys.argv[2:]])
