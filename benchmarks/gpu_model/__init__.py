"""A model of what kernels cost on GPUs that are not here: counts made on the CPU, and published figures.

``python -m pyops.benchmarks.gpu_model OP`` counts what an op's kernels do at the shapes of the benchmarks, as
a profiler would, and divides by what a GPU can do at most. No GPU runs anything, and no time is measured.
"""
