"""``torchrun --nproc-per-node N -m pyops.models.train NETWORK ...``: ``pyops train`` by N processes."""

from pyops.__main__ import main

if __name__ == "__main__":
    main("train")
