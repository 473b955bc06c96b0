"""Outputs that backward keeps although torch's ops keep something else, so that their owner may change them.

The rule: what torch lets a caller change in place after a call, this library does, too, with the gradient of
torch's op. Where the inputs are kept anyway, the cheapest way is to keep the output as well, notice a change
by its version, and only then compute it once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kinds import ELU, HARDTANH, LEAKY_RELU, SELU, Activation

#: Of these, torch keeps the input; of the others whose derivative is a formula of the output, the output.
_INPUT_IS_TORCHS = frozenset({LEAKY_RELU, SELU, ELU, HARDTANH})


def keeps_input_in_torch(activation: Activation) -> bool:
    """Whether torch's op keeps its input, so that a caller may change the output."""
    return activation.kind in _INPUT_IS_TORCHS


def may_be_changed(activation: Activation) -> bool:
    """The same for an op whose output is kept here. Under torch.compile no change reaches what is kept."""
    return keeps_input_in_torch(activation) and not torch.compiler.is_compiling()


class KeptOutput:
    """The version of an output. Saved is its :attr:`data`, which autograd does not watch."""

    def __init__(self, output: Tensor) -> None:
        self._probe = output.detach()
        self._probe.data = output.new_empty(0)  # it has the output's version and none of its memory
        self._version = output._version

    def was_changed(self) -> bool:
        """Whether the output is no longer what forward has computed."""
        return self._probe._version != self._version
