"""``python -m tests.gpu.stand_in_tool NAME ARGUMENTS``: compute-sanitizer or ncu for a dry run.

Takes the options that the real tool has, refuses others, and runs the program behind them. Prints what the
tool would print, in its form, where a run reads it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: The options with a value that these tools document, and that a run may use; None of a folder to write in.
OPTIONS = {
    "compute-sanitizer": {
        "--tool": ("memcheck", "racecheck", "initcheck", "synccheck"),
        "--log-file": None,
        "--print-limit": (),
        "--report-api-errors": ("all", "explicit", "no"),
        "--error-exitcode": (),
    },
    "ncu": {
        "--clock-control": ("base", "none"),
        "--profile-from-start": ("on", "off"),
        "--target-processes": ("all", "application-only"),
        "--metrics": (),
        "--page": ("details", "raw", "source", "session"),
        "--log-file": ("stderr", "stdout"),
    },
}
FLAGS = {"compute-sanitizer": (), "ncu": ("--csv",)}


def parse(name: str, arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options and program.

    Raises:
        SystemExit: an option or a value that the tool does not have.
    """
    known, found = OPTIONS[name], {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in FLAGS[name]:
            continue
        if option not in known or not rest:
            raise SystemExit(f"{name}: option {option} is not known, or its value is missing")
        value, allowed = rest.pop(0), known[option]
        if allowed and value not in allowed:
            raise SystemExit(f"{name}: {option} must be one of {', '.join(allowed)}, got {value}")
        if allowed is None and not Path(value).parent.is_dir():
            raise SystemExit(f"{name}: the folder of {option} {value} does not exist")
        found[option] = value
    if not rest:
        raise SystemExit(f"{name}: no program to run")
    return found, rest


def main() -> int:
    name, *arguments = sys.argv[1:]
    options, program = parse(name, arguments)
    code = subprocess.run(program, check=False).returncode
    if name == "compute-sanitizer":
        summary = "ERROR" if options["--tool"] == "memcheck" else "RACECHECK"
        text = f"========= COMPUTE-SANITIZER\n========= {summary} SUMMARY: 0 errors\n"
        Path(options["--log-file"].replace("%p", str(os.getpid()))).write_text(text, encoding="utf-8")
    else:
        metrics = options["--metrics"].split(",")
        lines = [["ID", "Kernel Name", *metrics], ["", "", *["unit"] * len(metrics)]]
        lines.append(["0", "a_kernel(int, float)", *["1.5"] * len(metrics)])
        for cells in lines:
            print(",".join(f'"{cell}"' for cell in cells), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
