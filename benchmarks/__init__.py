"""Benchmarks of pyops against torch: one file per op, one harness, machine ceilings, reports.

In a source checkout and in an installed package alike this folder is ``pyops.benchmarks``.
Start reading at :mod:`pyops.benchmarks.harness`; an op is added by adding a file (see
:mod:`pyops.benchmarks.registry`).
"""
