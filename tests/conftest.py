"""Fixtures of the whole suite; what the op tests share is in ``tests/suite``."""

import gc
import importlib.util
import os
import zlib
from collections.abc import Iterator

# PYOPS_TEST_TRITON=compiled runs the tests of Triton's backend alone: kernels compiled as for a GPU and run
# by tests/ptx_machine on CPU tensors, wherever that is.
if os.environ.get("PYOPS_TEST_TRITON") == "compiled":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "0"

import pytest
import torch

# Without a GPU, Triton kernels run in Triton's interpreter. It must be asked for before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pyops
from pyops.convert.plan import Plan
from pyops.memory import output_cache_stats, set_output_cache_limit
from tests.suite import kernel_coverage
from tests.suite.backends import (
    BACKENDS,
    COMPILED_TRITON,
    TRITON_IS_COMPILED,
    TWINS,
    WITH_KERNELS,
    Backend,
    activate,
    compile_triton,
    is_of_its_twin,
    missing_reason,
)

#: Markers of tests that run only where an option of the same name asks for them, and why.
OPTIONAL = {
    "large": "they need several GB of memory",
    "nightly": "they take minutes, and other tests find most of what they find",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for option, what in OPTIONAL.items():
        parser.addoption(f"--{option}", action="store_true", help=f"also run tests marked {option}: {what}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(kernel_coverage)
    for option, what in OPTIONAL.items():
        config.addinivalue_line("markers", f"{option}: {what}; only with --{option}")
    config.addinivalue_line("markers", "compiled_triton: runs with PYOPS_TEST_TRITON=compiled only")
    config.addinivalue_line("markers", "gpu: needs a GPU; tests with a backend on one have it by themselves")
    config.addinivalue_line("markers", "stand_in: a GPU's kernels on the CPU; given by the backend, too")
    # NumPy runs the interpreted Triton kernels: inf - inf in a masked-out lane is not worth a warning.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
    config.addinivalue_line("filterwarnings", "ignore:.*not have a deterministic impl.*:UserWarning")
    # Float32 is judged by float32: convolutions on a GPU may otherwise round to TF32, torch's default.
    torch.backends.cudnn.allow_tf32 = False
    if TRITON_IS_COMPILED and importlib.util.find_spec("triton"):
        compile_triton()  # before any test imports the kernels
    # One thread: pytest-xdist has a worker per core. The determinism tests compare 1, 2 and 3 threads.
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is there now stays: the collector need not look through 30,000 tests again and again."""
    gc.collect()
    gc.freeze()


def _parameters(item: pytest.Item) -> tuple[object, ...]:
    return tuple(item.callspec.params.values()) if hasattr(item, "callspec") else ()


def _for_compiled_triton(item: pytest.Item) -> bool:
    return "compiled_triton" in item.keywords or COMPILED_TRITON in _parameters(item)


@pytest.hookimpl(tryfirst=True)  # before pytest itself selects by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[i for i in items if _for_compiled_triton(i) != TRITON_IS_COMPILED])
    items[:] = [item for item in items if _for_compiled_triton(item) == TRITON_IS_COMPILED]
    tests = set() if any(map(missing_reason, TWINS)) else {item.nodeid for item in items}
    for item in items:
        for value in _parameters(item):
            if isinstance(value, Backend) and value.name not in ("cpp", "reference"):
                item.add_marker("gpu" if value.device == "cuda" else "stand_in")
            if isinstance(value, Backend) and is_of_its_twin(item.nodeid, value, tests):
                item.add_marker("nightly")
            if value == COMPILED_TRITON and zlib.crc32(item.nodeid.encode()) % 2:
                item.add_marker("nightly")  # by chance, as the options of cases alternate
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        for option, what in OPTIONAL.items():
            if option in item.keywords and not config.getoption(f"--{option}"):
                item.add_marker(pytest.mark.skip(reason=f"{what}: run with --{option}"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same numbers, alone or in company."""
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, in use for the duration of the test."""
    activate(request.param)
    with pyops.use_backend(request.param.name):
        yield request.param


@pytest.fixture(params=WITH_KERNELS, ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """As ``backend``, without the reference, which has no kernels of its own."""
    activate(request.param)
    with pyops.use_backend(request.param.name):
        yield request.param


@pytest.fixture
def cpp() -> Iterator[None]:
    """The C++ backend in use, for what it alone does or what every backend does alike."""
    with pyops.use_backend("cpp"):
        yield


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """Fresh memory holds NaN (integers: their maximum), so that reading it before writing shows.

    torch fills whatever its allocator returns through ``empty``, ``new_empty`` and ``empty_like``, the
    compiled libraries' allocations included. Outputs that would come from the cache are torch's own then.
    """
    limit = output_cache_stats().limit
    set_output_cache_limit(0)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    set_output_cache_limit(limit)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs do not draw, which takes longer than the short ones: pictures hold their data as text."""
    for name in ("save_curves", "save_predictions"):
        monkeypatch.setattr(
            f"pyops.models.training.results.{name}", lambda path, *data: path.write_text(repr(data))
        )
    monkeypatch.setattr("pyops.models.training.run.log_pictures", lambda *_: None)


@pytest.fixture
def plans_used(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans whose groups ran, in the order of their calls."""
    used: list[Plan] = []
    holds = Plan.holds

    def noting(self: Plan, *arguments: object) -> bool:
        held = holds(self, *arguments)
        if held:
            used.append(self)
        return held

    monkeypatch.setattr(Plan, "holds", noting)
    return used
