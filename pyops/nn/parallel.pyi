# Written by .ci/stubs.py: `make stubs`. What has no kernel here is what torch 2.13 has.

from torch.nn.parallel import *  # noqa: F403
