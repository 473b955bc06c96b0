"""The correctness suite that every op shares, run on every backend that can run here.

- ``backends``: the backends under test, and which of them are slow.
- ``ops``: one module per op: its formula in float64, the reference of all accuracy checks; torch's
  counterpart; its contract; cases for the smoke check, good arguments for tests/hostile, mistakes for the
  mutation test.
- ``cases``: the inputs and options an op is tried with, and how they are combined.
- ``contract``: which checks an op must pass, with which cases; ``tests/test_contract.py`` runs them.
- ``triton_cases``: what ops' launches that are compiled for GPUs share.
- ``cuda_code``: what ops count on in the machine code of their CUDA kernels; ``cuda_library`` reads it.
- ``kernel_coverage``: a pytest plugin that tells which of nvcc's kernels a run has launched.
- ``native``: shared libraries that tests compile.
- ``class_losses``: what the losses over classes share.
- ``layouts``: the same values in other strides.
- ``checks``: what must hold; written once, called by ``tests/test_contract.py`` and the ops' own tests.
- ``torch_samples``: the samples that PyTorch tests its own functions with.
- ``training``: training runs short enough for tests, and what is compared of them.
"""
