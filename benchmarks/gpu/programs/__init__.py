"""What the steps start: programs that import torch and pyops, each a :mod:`pyops.benchmarks.gpu.worker`."""
