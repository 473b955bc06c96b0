"""``python -m tests.gpu.pytest_worker --share 0/12``: a worker's share of the tests that need a GPU.

They are dealt out in turn, those of CUDA C++ before those of Triton, which compiles. After every test the GPU
is asked whether it still works, so that the blame is on the right one.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import Any

import pytest
from pyops.benchmarks.gpu import worker
from pyops.benchmarks.measure.device import DryRun, Gpu, opened

from tests.suite.backends import Backend

#: By the kind of device, the marker of the tests that run on it (conftest.py).
MARKERS = {"cuda": "gpu", "dry-run": "stand_in"}


class Share:
    """The pytest plugin that runs the worker's share and tells each outcome."""

    def __init__(self, given: argparse.Namespace, device: Gpu | DryRun, lines: worker.Lines) -> None:
        self.given, self.device, self.lines = given, device, lines
        self.reports: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        number, of = map(int, self.given.share.split("/"))
        items.sort(key=_is_triton)
        share = {item.nodeid: item for item in items[number::of]}
        items[:] = [share[name] for name in worker.remaining(share, self.given.after)]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected is told by the first worker, and costs the others nothing."""
        if report.failed and self.given.share.startswith("0/"):
            row = {"outcome": worker.FAILED, "message": str(report.longrepr)[-3000:]}
            self.lines.tell(end=report.nodeid, **row)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.lines.tell(items=len(session.items))
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            self.lines.tell(begin=item.nodeid)
            self.reports.clear()
            start = time.perf_counter()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            seconds = round(time.perf_counter() - start, 4)
            row = {"seconds": seconds, **_outcome(self.reports)}
            worker.finish(self.lines, item.nodeid, row, self.device)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)


def _is_triton(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    values = parameters.params.values() if parameters else ()
    return any(isinstance(value, Backend) and value.name == "triton" for value in values)


def _outcome(reports: list[pytest.TestReport]) -> dict[str, Any]:
    failed = next((report for report in reports if report.failed), None)
    if failed is not None:
        return {"outcome": worker.FAILED, "message": str(failed.longrepr)[-3000:]}
    skipped = next((report for report in reports if report.skipped), None)
    if skipped is not None:
        return {"outcome": worker.SKIPPED, "message": str(skipped.longrepr)[-300:]}
    return {"outcome": worker.PASSED}


def main() -> int:
    parser = worker.parser(__doc__)
    parser.add_argument("--share", required=True, metavar="I/N", help="the I-th of N shares, from 0")
    parser.add_argument("--select", default="tests", metavar="ARGUMENTS", help="of pytest, as in a shell")
    given = parser.parse_args()
    device = opened(given.device)
    lines = worker.Lines()
    share = Share(given, device, lines)
    options = ["-m", f"{MARKERS[given.device]} and not nightly", "-q", "-p", "no:cacheprovider"]
    code = pytest.main([*options, *shlex.split(given.select)], plugins=[share])
    ends = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    return 0 if code in ends else int(code)


if __name__ == "__main__":
    sys.exit(main())
