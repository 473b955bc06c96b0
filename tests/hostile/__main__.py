"""``python -m tests.hostile BACKEND CALLS``: calls with spoiled arguments, and a table of what came of them.

    --seed N       other calls (0)
    --only I       call number I alone, in this process: for a debugger
    --sanitize     the backend's library built for AddressSanitizer and UBSan (cpp and emulated)

The calls are made by a process that is started again behind the call that ended it. Exits with 1 where
anything was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.suite.processes import ROOT

#: Processor time for one call: a loop without end is ended by a signal, and no busy machine ends a call.
SECONDS_PER_CALL = 120
#: What a process may take of memory beyond what it begins with, where no sanitizer needs the address space.
BYTES = 4 << 30


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * mmap.PAGESIZE + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _load_instead(library: str) -> None:
    """Let pyops load the sanitized ``library`` in place of the one that setup.py built."""
    import torch

    load = torch.ops.load_library
    torch.ops.load_library = lambda path: load(library if "libpyops_cpu_" in str(path) else path)


def worker(backend_name: str, first: int, last: int, seed: int, log: str | None = None) -> None:
    """Make the calls. ``log`` gets a line of JSON before and after each; without it the calls are printed."""
    if sanitized := os.environ.get("PYOPS_HOSTILE_LIBRARY"):
        _load_instead(sanitized)
    from tests.suite.backends import BACKENDS

    from . import attack

    asan = "PYOPS_HOSTILE_SANITIZED" in os.environ
    backend = next(b for b in BACKENDS if str(b) == backend_name)
    attack.prepare(backend)
    if not asan and backend.device == "cpu":
        _limit_memory()
    with open(log or os.devnull, "a", buffering=1) as file:
        for index in range(first, last):
            signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_CALL)
            call = attack.make_call(backend, seed, index, guards=not asan)
            text = attack.describe_call(call)
            print(json.dumps({"index": index, "name": call.name, "text": text}), file=file)
            accepted, problem = attack.judge(call, backend if index % 4 else None)
            print(json.dumps({"accepted": accepted, "problem": problem}), file=file)
            if not log:
                print(f"{text}\n{'accepted' if accepted else 'refused'}; wrong: {problem}")
    attack.finish(backend)


def contract(backend_name: str) -> None:
    """The suite's cases that reach the edges of every kernel: nothing but what a sanitizer sees is wrong."""
    if sanitized := os.environ.get("PYOPS_HOSTILE_LIBRARY"):
        _load_instead(sanitized)
    import torch

    import pyops
    from tests.suite import checks, ops
    from tests.suite.backends import BACKENDS, activate

    backend = next(b for b in BACKENDS if str(b) == backend_name)
    activate(backend)
    tried = 0
    for module in ops.MODULES:
        cases = [*module.CONTRACT.small] if hasattr(module, "CONTRACT") else []
        for case in cases + [*getattr(module, "SMOKE", ())] * backend.thorough:
            with pyops.use_backend(backend.name):
                checks.run(ops.OPS[case.op].pyops, case, case.tensors(torch.float32))
            tried += 1
    print(f"{backend_name}: {tried} cases of the contracts, forward and backward")


def _ending(code: int, errors: str) -> str:
    """What ended a process, in words."""
    if code == -signal.SIGPROF:
        return f"no end within {SECONDS_PER_CALL} s of processor time"
    said = [line for line in errors.splitlines() if "ERROR: " in line or "runtime error" in line]
    said += [line for line in errors.splitlines() if " in pyops" in line or "csrc/" in line][:4]
    name = signal.Signals(-code).name if code < 0 else f"exit {code}"
    return f"{name}: {' '.join(said) or errors[-600:]}"


def _environment(backend_name: str, sanitize: bool) -> dict[str, str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    if not sanitize:
        return variables
    from . import build

    variables |= {**build.environment(), "PYOPS_HOSTILE_SANITIZED": "1"}
    if backend_name == "cpp":
        return variables | {"PYOPS_HOSTILE_LIBRARY": str(build.build_loaded())}
    from tests.cuda_emulation import build as emulation

    return variables | {"PYOPS_EMULATION_LIBRARY": str(emulation.build_ops(sanitize=True))}


@dataclass
class Outcome:
    """Counts of the calls by what was called, and what was wrong."""

    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, lines: list[str], ending: str | None) -> int:
        """Count the calls of a process's log; the number of the next call."""
        records = [json.loads(line) for line in lines]
        for call, answer in itertools.zip_longest(records[::2], records[1::2]):
            if answer is None:
                self.crashes += 1
                answer = {"accepted": False, "problem": f"ended the process: {ending}"}
            (self.accepted if answer["accepted"] else self.refused)[call["name"]] += 1
            if answer["problem"]:
                self.findings.append(f"call {call['index']}: {call['text']}\n    {answer['problem']}")
        if not records:
            raise RuntimeError(f"the process ended before the first call: {ending}")
        if ending and len(records) % 2 == 0:  # as where a call before has written beside its memory
            self.crashes += 1
            self.findings.append(f"behind call {records[-2]['index']}: {ending}")
        return int(records[-1 if len(records) % 2 else -2]["index"]) + 1


def make_calls(
    backend_name: str, number: int, seed: int = 0, *, sanitize: bool = False, crashes: int = 50
) -> Outcome:
    """Make ``number`` calls, or as many as come before one ``crashes`` too many."""
    variables, outcome, first = _environment(backend_name, sanitize), Outcome(), 0
    while first < number and outcome.crashes <= crashes:
        with tempfile.NamedTemporaryFile("r") as log:
            command = [sys.executable, "-W", "ignore", "-m", "tests.hostile", backend_name, str(number)]
            command += ["--seed", str(seed), "--first", str(first), "--log", log.name]
            done = subprocess.run(
                command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False
            )
            ending = _ending(done.returncode, done.stderr) if done.returncode else None
            first = outcome.add(log.read().splitlines(), ending)
    return outcome


def table(outcome: Outcome) -> str:
    """The counts by kind of function."""
    lines = [f"{'':28} {'called':>8} {'accepted':>9} {'refused':>8}"]
    kinds = sorted({name.rpartition(".")[0] for name in [*outcome.accepted, *outcome.refused]})
    for kind in [*kinds, ""]:
        yes, no = (
            sum(n for name, n in counts.items() if not kind or name.rpartition(".")[0] == kind)
            for counts in (outcome.accepted, outcome.refused)
        )
        lines.append(f"{kind or 'all':28} {yes + no:8} {yes:9} {no:8}")
    different = len({*outcome.accepted, *outcome.refused})
    return "\n".join(
        [*lines, f"{different} functions, {outcome.crashes} crashes, {len(outcome.findings)} findings"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backend")
    parser.add_argument("calls", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--contract", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--log", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contract:
        return contract(asked.backend)
    if asked.log:
        return worker(asked.backend, asked.first, asked.calls, asked.seed, asked.log)
    if asked.only is not None:
        return worker(asked.backend, asked.only, asked.only + 1, asked.seed)
    if asked.sanitize:
        variables = _environment(asked.backend, True)
        command = [sys.executable, "-m", "tests.hostile", asked.backend, "0", "--contract"]
        subprocess.run(command, env=variables, cwd=ROOT, check=True)
    outcome = make_calls(asked.backend, asked.calls, asked.seed, sanitize=asked.sanitize)
    print(*outcome.findings, f"{asked.backend}, seed {asked.seed}:", table(outcome), sep="\n", flush=True)
    sys.exit(bool(outcome.findings))


if __name__ == "__main__":
    main()
