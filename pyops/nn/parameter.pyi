# Written by .ci/stubs.py: `make stubs`. What has no kernel here is what torch 2.13 has.

from torch.nn.parameter import *  # noqa: F403
