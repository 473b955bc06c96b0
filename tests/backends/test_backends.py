"""Choosing a backend, what is said when one is missing, and crashes of raw ops."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import pyops
from pyops import backends, small_tensors
from tests.suite.backends import TWINS, Backend, is_of_its_twin
from tests.suite.processes import ROOT, run_python

_X = torch.zeros(2, 3)


def used() -> str:
    """The backend that serves a CPU tensor now."""
    handles = backends.resolve(_X)
    return "reference" if handles is None else handles.backend


def test_default_on_the_cpu_is_cpp() -> None:
    assert used() == "cpp"
    assert pyops.available_backends()[0] == "cpp"


def test_available_backends_lists_those_that_run(backend: Backend) -> None:
    assert backend.name in pyops.available_backends(backend.device)
    assert backend.name in pyops.available_backends(torch.device(backend.device))


def test_reference_serves_any_device() -> None:
    assert pyops.available_backends("meta") == ["reference"]


@pytest.mark.parametrize(
    ("op", "dtype", "differentiable"),
    [
        ("softmax", torch.float32, True),
        ("softmax", torch.float32, False),
        ("an op that nobody measured", torch.float32, True),
        ("softmax", torch.bfloat16, True),
        ("softmax", torch.float16, False),
        ("softmax", torch.float64, True),
    ],
)
def test_small_single_ops_are_left_to_torch_unless_a_backend_is_asked_for(
    op: str, dtype: torch.dtype, differentiable: bool
) -> None:
    """The rule of backends.prefers_torch: other limits with a gradient than without, and in 16 bits."""
    tiny = small_tensors.TINY
    tables = {4: backends.TORCH_IS_FASTER, 2: backends.TORCH_IS_FASTER_IN_16_BITS, 8: {}}
    limits = tables[dtype.itemsize].get(op, tiny)
    limit = limits[differentiable]
    for elements in (limit, limit + 1):
        x = torch.empty(elements, dtype=dtype)
        weight = torch.empty(1, requires_grad=differentiable)
        assert backends.prefers_torch(op, x, None, weight) == (elements == limit)
        assert backends.prefers_torch(op, x[:0], weight, elements=elements) == (elements == limit)
        with torch.no_grad():
            assert backends.prefers_torch(op, x, weight) == (elements <= limits[0])
        with pyops.use_backend("cpp"):
            assert not backends.prefers_torch(op, x, weight)


@pytest.mark.parametrize("name", ["rnn_tanh_cell", "rnn_relu_cell", "gru_cell", "lstm_cell"])
def test_small_cells_are_torchs_to_the_bit(name: str) -> None:
    x, h = torch.randn(4, 8), torch.randn(4, 16)
    gates = {"gru_cell": 48, "lstm_cell": 64}.get(name, 16)
    weights = [torch.randn(gates, 8), torch.randn(gates, 16), torch.randn(gates), torch.randn(gates)]
    hx = (h, h) if name == "lstm_cell" else h
    for biases in (weights[2:], [None, None]):
        found, wanted = (
            getattr(functions, name)(x, hx, *weights[:2], *biases) for functions in (pyops.functional, torch)
        )
        assert all(map(torch.equal, found, wanted)) if name == "lstm_cell" else torch.equal(found, wanted)


def test_what_is_left_to_torch_is_torchs_to_the_bit() -> None:
    for classes, left_to_torch in [(1024, True), (1 << 18, False)]:
        x = torch.randn(1, classes, requires_grad=True)
        y = pyops.functional.softmax(x, 1)
        assert ("_Softmax" not in type(y.grad_fn).__name__) == left_to_torch
        if left_to_torch:
            assert torch.equal(y, torch.softmax(x, 1))
        with pyops.use_backend("cpp"):
            assert "_Softmax" in type(pyops.functional.softmax(x, 1).grad_fn).__name__


@pytest.mark.usefixtures("threads")
def test_small_tensors_had_other_bits_for_another_number_of_threads() -> None:
    """Where torch served them, whose sums are cut by threads. Its switch for determinism keeps them here."""
    x, weight = torch.randn(250, 1000), torch.rand(1000)
    images = torch.randn(8, 16, 14, 14).to(memory_format=torch.channels_last)
    calls = {
        "softmax": lambda x: pyops.functional.softmax(x, 1),
        "batch_norm": lambda x: pyops.functional.batch_norm(
            x, None, None, weight[: x.size(1)], training=True
        ),
        "layer_norm": lambda x: pyops.functional.layer_norm(x, (1000,), weight),
    }
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True)
    try:
        for name, tensor in [("softmax", x), ("batch_norm", x), ("batch_norm", images), ("layer_norm", x)]:
            found = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                leaf = tensor.clone().requires_grad_()
                y = calls[name](leaf)
                found.append((y.detach(), *torch.autograd.grad(y, leaf, tensor)))
            for other in found[1:]:
                assert all(map(torch.equal, found[0], other)), name
    finally:
        torch.set_deterministic_debug_mode(mode)


def test_rows_of_three_dimensions_were_left_to_torch_as_a_matrix_is() -> None:
    """Torch's batch norm of [N, C, L] takes three times as long as ours from some thousand elements on."""
    x = torch.randn(32, 64, 49)
    y = pyops.functional.batch_norm(x.requires_grad_(), None, None, training=True)
    assert "_BatchNorm" in type(y.grad_fn).__name__
    matrix = x.detach().reshape(64, -1).T.contiguous().requires_grad_()
    assert (
        "_BatchNorm"
        not in type(pyops.functional.batch_norm(matrix, None, None, training=True).grad_fn).__name__
    )


def test_use_backend_is_undone_also_by_an_exception() -> None:
    with pyops.use_backend("reference"):
        assert used() == "reference"
        with pyops.use_backend("cpp"):
            assert used() == "cpp"
        assert used() == "reference"
    with pytest.raises(KeyError), pyops.use_backend("reference"):
        raise KeyError
    assert used() == "cpp"


def test_use_backend_none_returns_to_the_default() -> None:
    with pyops.use_backend("reference"), pyops.use_backend(None):
        assert used() == "cpp"


def test_set_backend_stays_until_it_is_taken_back() -> None:
    try:
        pyops.set_backend("reference")
        assert used() == "reference"
    finally:
        pyops.set_backend(None)
    assert used() == "cpp"


def test_backward_uses_the_backend_of_its_forward() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    with pyops.use_backend("cpp"):
        y = pyops.functional.softmax(x, 1)
    with pyops.use_backend("reference"):
        assert "_Softmax" in type(y.grad_fn).__name__
        y.sum().backward()
    assert x.grad is not None


def test_unknown_backend_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"backend 'fast' is not available.*cpp, cuda, triton, reference"):
        pyops.set_backend("fast")
    assert used() == "cpp"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_says_why() -> None:
    with pytest.raises(ValueError, match=r"backend 'cuda' is not available.*serves cuda tensors"):
        pyops.set_backend("cuda")


def test_backend_that_cannot_serve_the_tensors_device_raises() -> None:
    with (
        pyops.use_backend("cpp"),
        pytest.raises(RuntimeError, match=r"backend 'cpp' cannot run on .*'meta'.*there: reference"),
    ):
        pyops.functional.softmax(_X.to("meta"), 1)


def test_dtype_that_no_kernel_serves_falls_to_the_reference() -> None:
    assert backends.resolve(torch.zeros(2, dtype=torch.float8_e4m3fn)) is None


# ----------------------------------------------------------------------------------------- in fresh processes

_PRINT_USED = (
    "import torch, pyops; h = pyops.backends.resolve(torch.zeros(1));"
    "print('reference' if h is None else h.backend)"
)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_environment_variable_chooses(name: str) -> None:
    assert run_python("-c", _PRINT_USED, environment={"PYOPS_BACKEND": name}).stdout.strip() == name


def test_environment_variable_chooses_interpreted_triton() -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    environment = {"PYOPS_BACKEND": "triton", "TRITON_INTERPRET": "1"}
    assert run_python("-c", _PRINT_USED, environment=environment).stdout.strip() == "triton"


_DRIVER_ON = """
import torch, triton
class Driver:
    def get_active_torch_device(self):
        return torch.device("{device}")
triton.runtime.driver.set_active(Driver())
import pyops
print("triton" in pyops.available_backends("cpu"))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_triton_serves_the_cpu_where_its_driver_does(device: str) -> None:
    pytest.importorskip("triton")
    script = _DRIVER_ON.format(device=device)
    result = run_python("-c", script, environment={"PYOPS_BACKEND": None, "TRITON_INTERPRET": None})
    assert result.stdout.strip() == str(device == "cpu")


def test_bad_environment_variable_is_named() -> None:
    result = run_python("-c", "import pyops", environment={"PYOPS_BACKEND": "fast"}, check=False)
    assert result.returncode != 0
    assert "environment variable PYOPS_BACKEND: backend 'fast' is not available" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_on_the_cpu_without_its_interpreter_says_what_to_set() -> None:
    environment = {"PYOPS_BACKEND": "triton", "TRITON_INTERPRET": None}
    result = run_python("-c", "import pyops", environment=environment, check=False)
    assert "needs TRITON_INTERPRET=1 set before Triton is imported" in result.stderr


@pytest.mark.parametrize("prefix", ["", "pyops.set_backend('cpp');"])
def test_the_first_call_of_a_process_can_be_a_compiled_one(prefix: str) -> None:
    script = (
        f"import torch, pyops; {prefix}"
        "f = torch.compile(pyops.functional.cross_entropy, fullgraph=True, backend='aot_eager');"
        "x = torch.randn(3, 4, requires_grad=True); f(x, torch.tensor([0, 1, 2])).backward()"
    )
    run_python("-c", script, environment={"PYOPS_BACKEND": None})


@pytest.fixture
def unbuilt(tmp_path: Path) -> Path:
    """The package's Python files without its libraries."""
    ignored = shutil.ignore_patterns("_lib", "__pycache__", "*.so")
    shutil.copytree(ROOT / "pyops", tmp_path / "pyops", ignore=ignored)
    return tmp_path


def test_missing_library_is_said_at_the_first_call_and_does_not_break_import(unbuilt: Path) -> None:
    script = "import torch, pyops; print(pyops.available_backends()); pyops.functional.softmax(torch.ones(2))"
    environment = {"TRITON_INTERPRET": None}
    result = run_python("-c", script, directory=unbuilt, environment=environment, check=False)
    assert result.stdout.strip() == "['reference']"
    assert "the C++ kernels are not available: libpyops_cpu_" in result.stderr
    assert "was not built (reinstall with a compiler: pip install -e .)" in result.stderr


def test_reference_works_without_libraries(unbuilt: Path) -> None:
    script = "import torch, pyops; print(pyops.functional.softmax(torch.zeros(2), 0).tolist())"
    result = run_python("-c", script, directory=unbuilt, environment={"PYOPS_BACKEND": "reference"})
    assert result.stdout.strip() == "[0.5, 0.5]"


def test_library_that_cannot_be_loaded_is_said(unbuilt: Path) -> None:
    (unbuilt / "pyops" / "_lib").mkdir()
    for isa in ("baseline", "avx2", "avx512"):
        (unbuilt / "pyops" / "_lib" / f"libpyops_cpu_{isa}.so").write_bytes(b"not a library")
    script = "import pyops; print(pyops.info()['backends']['cpu']['cpp'])"
    assert "could not be loaded" in run_python("-c", script, directory=unbuilt).stdout


def test_emulator_and_ptx_machine_share_the_tests_that_both_have() -> None:
    ptx = TWINS[1]
    names = [f"t.py::test[{{}}-case{i}]" for i in range(64)]
    tests = {name.format(twin.name) for name in names for twin in TWINS} | {"t.py::test_alone[ptx]"}
    left = {tuple(is_of_its_twin(name.format(twin.name), twin, tests) for twin in TWINS) for name in names}
    assert left == {(True, False), (False, True)}
    assert not is_of_its_twin("t.py::test_alone[ptx]", ptx, tests)
