"""Mistakes planted in the PTX of this library are found, each by the tool that the list names."""

from __future__ import annotations

import re

import pytest

from tests.ptx_machine import nvcc

pytestmark = pytest.mark.skipif(bool(nvcc.missing_reason()), reason=str(nvcc.missing_reason()))

if not nvcc.missing_reason():
    from tests.ptx_machine import planted
    from tests.ptx_machine.faults import detect

    CALLS, FAULTS = planted.CALLS, planted.FAULTS
else:
    CALLS, FAULTS = {}, {}


@pytest.fixture(scope="module", autouse=True)
def backend() -> None:
    nvcc.load()


@pytest.mark.parametrize("name", list(CALLS))
def test_sound_kernels_pass_all_tools(name: str) -> None:
    assert detect(CALLS[name]) == (None, "")


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_planted_fault_is_found(name: str) -> None:
    """Those that no tool finds fail here as soon as one does: the list has to say so then."""
    fault = FAULTS[name]
    tool, message = planted.plant(fault)
    assert tool == fault.tool, message
    if tool == "machine":
        assert re.search(fault.message, message), message


def test_nearly_all_of_the_list_is_found() -> None:
    missed = [name for name, fault in FAULTS.items() if fault.tool is None]
    assert len(FAULTS) >= 31
    assert len(missed) <= 2
    assert all(FAULTS[name].message for name in missed)
    assert {fault.kind for fault in FAULTS.values()} == set(planted.EMULATOR)
