"""A machine that runs PTX, as compilers for NVIDIA's GPUs emit it, on the CPU.

It is strict where GPUs are strict or silent.

- ``core/``, ``numbers/``: parser, decoder, warps, blocks and memories; arithmetic and tensor cores. In C++.
- ``machine.py``: modules of PTX text and their launches, from Python.
- ``nvcc.py``, ``host.py``, ``host/``: the backend ``ptx``, nvcc's kernels under the emulator's host code.
- ``triton_driver.py``: a Triton driver that runs what Triton compiles.
- ``handwritten.py``: small kernels for tests of the machine itself.
- ``faults.py``, ``planted.py``, ``planted_triton.py``: mistakes planted in real kernels, and what finds each;
  ``python -m tests.ptx_machine.planted`` prints the list.
"""
