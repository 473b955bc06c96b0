"""The correctness suite that every op shares, run on every backend that can run here.

- ``backends``: the backends under test, and which of them are slow.
- ``formulas``: each op in float64, one line per term; the reference of all accuracy checks.
- ``cases``: the ops, and the inputs and options they are tried with.
- ``layouts``: the same values in other strides.
- ``checks``: what must hold; written once, called by ``tests/test_<op>.py``.
"""
