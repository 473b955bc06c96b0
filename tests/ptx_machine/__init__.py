"""A machine that runs PTX, as compilers for NVIDIA's GPUs emit it, on the CPU.

It is strict where GPUs are strict or silent.

- ``core/``, ``numbers/``: parser, decoder, warps, blocks and memories; arithmetic and tensor cores. In C++.
- ``machine.py``: modules of PTX text and their launches, from Python.
- ``handwritten.py``: small kernels for tests of the machine itself.
"""
