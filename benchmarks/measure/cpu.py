"""What the CPU is called and can do, as ``/proc/cpuinfo`` tells: a model name alone may be "AMD EPYC"."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

#: The sets that kernels choose among; a machine has some hundred flags.
FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
)

_AMD, _INTEL = "AuthenticAMD", "GenuineIntel"
#: By vendor and family: the first model of a range, its last, and the name of the generation.
_GENERATIONS: dict[tuple[str, int], list[tuple[int, int, str]]] = {
    (_AMD, 23): [(0x00, 0x2F, "Zen"), (0x30, 0xFF, "Zen 2")],
    (_AMD, 25): [
        (0x00, 0x0F, "Zen 3"),
        (0x10, 0x1F, "Zen 4"),
        (0x20, 0x5F, "Zen 3"),
        (0x60, 0x7F, "Zen 4"),
        (0xA0, 0xAF, "Zen 4"),
    ],
    (_AMD, 26): [(0x00, 0x4F, "Zen 5"), (0x60, 0x7F, "Zen 5")],
    (_INTEL, 6): [
        (63, 63, "Haswell"),
        (79, 79, "Broadwell"),
        (85, 85, "Skylake-SP, Cascade Lake or Cooper Lake"),
        (106, 106, "Ice Lake"),
        (108, 108, "Ice Lake"),
        (143, 143, "Sapphire Rapids"),
        (173, 174, "Granite Rapids"),
        (175, 175, "Sierra Forest"),
        (207, 207, "Emerald Rapids"),
    ],
}
_VENDORS = {_AMD: "AMD", _INTEL: "Intel"}


def name(cpuinfo: str | None = None) -> str:
    """Vendor, model name, family, model and generation: "AMD EPYC (family 25 model 17, Zen 4)"."""
    facts = _facts(cpuinfo)
    vendor = _VENDORS.get(facts.get("vendor_id", ""), facts.get("vendor_id", ""))
    called = facts.get("model name") or platform.processor() or platform.machine()
    for mark in ("(R)", "(TM)", "(r)", "(tm)"):
        called = called.replace(mark, "")
    called = " ".join(called.split())
    if vendor and vendor.lower() not in called.lower():
        called = f"{vendor} {called}"
    try:
        family, model = int(facts["cpu family"]), int(facts["model"])
    except (KeyError, ValueError):  # no x86
        return called
    ranges = _GENERATIONS.get((facts.get("vendor_id", ""), family), [])
    generation = next((f", {known}" for first, last, known in ranges if first <= model <= last), "")
    return f"{called} (family {family} model {model}{generation})"


def features(cpuinfo: str | None = None) -> list[str]:
    """Those of :data:`FEATURES` that the CPU has."""
    flags = _facts(cpuinfo).get("flags", "").split()
    return [feature for feature in FEATURES if feature in flags]


def _facts(cpuinfo: str | None) -> dict[str, str]:
    """The lines of the first processor."""
    first = (_read() if cpuinfo is None else cpuinfo).partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


@cache
def _read() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
