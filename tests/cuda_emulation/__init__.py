"""Runs the CUDA sources in ``csrc/cuda`` on the CPU; see :mod:`tests.cuda_emulation.build`."""
