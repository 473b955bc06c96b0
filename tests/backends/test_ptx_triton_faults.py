"""Mistakes planted in Triton's PTX are found, each by the tool that the list names.

Runs with ``PYOPS_TEST_TRITON=compiled`` only.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("triton")

from tests.suite.backends import TRITON_IS_COMPILED, compile_triton

pytestmark = pytest.mark.compiled_triton

if TRITON_IS_COMPILED:
    from tests.ptx_machine import planted_triton

    CALLS, FAULTS = planted_triton.CALLS, planted_triton.FAULTS
else:
    CALLS, FAULTS = {}, {}


@pytest.fixture(autouse=True)
def compiled() -> None:
    compile_triton()


@pytest.mark.parametrize("name", list(CALLS))
def test_sound_kernels_pass_all_tools(name: str) -> None:
    assert planted_triton.detect(CALLS[name]) == (None, "")


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_planted_fault_is_found(name: str) -> None:
    fault: Any = FAULTS[name]
    tool, message = planted_triton.plant(fault)
    assert tool == fault.tool, message
    if tool == "machine":
        assert re.search(fault.message, message), message
