"""Benchmarks of pyops against torch.

In a source checkout and in an installed package alike this folder is ``pyops.benchmarks``:
``cases`` says what is measured, ``measure`` how, ``report`` shows it. Start reading at
:mod:`pyops.benchmarks.measure.harness`; an op is added by adding a file to ``cases``.
"""
