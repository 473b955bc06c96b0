"""What a GPU run (``make gpu``) takes from the suite: programs that :mod:`pyops.benchmarks.gpu` starts."""
