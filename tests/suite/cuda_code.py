"""What ops count on in the machine code of their CUDA kernels; ``test_cuda_build.py`` looks for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """Patterns of instructions that a source's code has and lacks; with ``kernels``, a pattern of names, each
    of these kernels."""

    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    kernels: str | None = None


#: Stores as if other threads waited for what they write.
STRONG_STORES = r"STG\.E\.128\.STRONG"

#: Packs move 16 bytes at once. The compiler may split an access it cannot see to be aligned, to single bytes.
PACKS = Code(has=(r"LDG\.E\.128", r"STG\.E\.128"), lacks=(r"(LDG|STG)\.E\.[US]8", STRONG_STORES))
