"""Whether this process is the ``pyops`` command, which shows its help without torch and the kernels."""

from __future__ import annotations

import os
import sys


def is_command() -> bool:
    """Whether Python was started as ``pyops ...``, the installed script, or as ``python -m pyops ...``."""
    # What the interpreter was given before the arguments: processes that Python starts itself have other
    # words there, although their sys.argv may be a copy of this process's.
    given = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if sys.argv[:1] == ["-m"]:  # while Python looks for the module
        return given[-2:] == ["-m", "pyops"]
    if not sys.argv or given[-1:] != sys.argv[:1]:
        return False
    folder, name = os.path.split(os.path.abspath(sys.argv[0]))
    return name == "pyops" and folder == os.path.dirname(os.path.abspath(sys.executable))
