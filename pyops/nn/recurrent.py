"""Recurrent modules: torch's classes, parameters and constructors included, with this library's functions."""

from __future__ import annotations

from typing import Any

import torch.nn
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import functional as F
from ..dtypes import autocasts
from ..ops.tools.checks import check_tensor

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

_FUNCTIONS: dict[str, Any] = {"RNN_TANH": F.rnn_tanh, "RNN_RELU": F.rnn_relu, "LSTM": F.lstm, "GRU": F.gru}


class _Layers(torch.nn.RNNBase):
    """What the three layers share."""

    def flatten_parameters(self) -> None:
        """Nothing: the kernels take the parameters where they lie."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        return run_layers(self, input, hx)


# What does not depend on the class: pyops.convert calls it on layers of torch's class, too.


def run_layers(layers: torch.nn.RNNBase, input: Any, hx: Any = None) -> Any:
    """The result of recurrent layers of any class, torch's included: shapes, and their function."""
    name = type(layers).__name__
    is_lstm = layers.mode == "LSTM"
    packed = input if isinstance(input, PackedSequence) else None
    x, batch_sizes = (input, None) if packed is None else (packed.data, packed.batch_sizes)
    check_tensor(name, "input", x)
    if packed is None and x.dim() not in (2, 3):
        raise ValueError(f"{name}: input must have 2 or 3 dimensions, got {x.dim()}")
    _check_dtype(layers, x)
    unbatched = packed is None and x.dim() == 2
    batch_dim = 0 if layers.batch_first else 1
    if unbatched:
        x = x.unsqueeze(batch_dim)
    states = _states(layers, x, hx, packed, unbatched, batch_dim)
    result = _FUNCTIONS[layers.mode](
        x,
        states if is_lstm else states[0],
        [getattr(layers, weight) for weight in layers._flat_weights_names],
        layers.bias,
        layers.num_layers,
        layers.dropout,
        layers.training,
        layers.bidirectional,
        layers.batch_first,
        batch_sizes=batch_sizes,
    )
    output, last = result[0], result[1:]
    if packed is not None:
        output = PackedSequence(output, batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        if packed.unsorted_indices is not None:
            last = tuple(state.index_select(1, packed.unsorted_indices) for state in last)
    elif unbatched:
        output, last = output.squeeze(batch_dim), tuple(state.squeeze(1) for state in last)
    return output, last if is_lstm else last[0]


def _check_dtype(layers: torch.nn.RNNBase, x: Tensor) -> None:
    dtype = getattr(layers, layers._flat_weights_names[0]).dtype
    if x.dtype != dtype and not autocasts(x):
        raise ValueError(
            f"{type(layers).__name__}: RNN input dtype ({x.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({x.dtype})"
        )


def _states(
    layers: torch.nn.RNNBase,
    x: Tensor,
    hx: Any,
    packed: PackedSequence | None,
    unbatched: bool,
    batch_dim: int,
) -> tuple[Tensor, ...]:
    """The first h, and c for an LSTM, each of 3 dimensions and in the order of the sequences of ``x``."""
    name, is_lstm = type(layers).__name__, layers.mode == "LSTM"
    if hx is None:
        batch = x.shape[batch_dim] if packed is None else int(packed.batch_sizes[0])
        count = layers.num_layers * (2 if layers.bidirectional else 1)
        h_0 = x.new_zeros(count, batch, layers.proj_size or layers.hidden_size)
        return (h_0, x.new_zeros(count, batch, layers.hidden_size)) if is_lstm else (h_0,)
    if is_lstm and (isinstance(hx, Tensor) or len(hx) != 2):
        raise ValueError(f"{name}: hx must be a pair of h and c, got {type(hx).__name__}")
    states = tuple(hx) if is_lstm else (hx,)
    for state in states:
        if state.dim() != (2 if unbatched else 3):
            raise RuntimeError(
                f"{name}: hx must have {2 if unbatched else 3} dimensions as the "
                f"{'unbatched' if unbatched else 'batched'} input asks for, got {state.dim()}"
            )
    if unbatched:
        return tuple(state.unsqueeze(1) for state in states)
    if packed is not None and packed.sorted_indices is not None:
        return tuple(state.index_select(1, packed.sorted_indices) for state in states)
    return states


class RNN(_Layers, torch.nn.RNN):
    """:class:`torch.nn.RNN` through :func:`pyops.functional.rnn_tanh` or ``rnn_relu``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, nonlinearity, *args, **kwargs)


class LSTM(_Layers, torch.nn.LSTM):
    """:class:`torch.nn.LSTM` through :func:`pyops.functional.lstm`."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(input_size, hidden_size, *args, **kwargs)


class GRU(_Layers, torch.nn.GRU):
    """:class:`torch.nn.GRU` through :func:`pyops.functional.gru`."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(input_size, hidden_size, *args, **kwargs)


def _arguments(
    cell: torch.nn.RNNCellBase, input: Tensor, states: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Input and states with a batch dimension; states of zeros if there are none."""
    name = type(cell).__name__
    names = ("hx[0]", "hx[1]") if isinstance(cell, torch.nn.LSTMCell) else ("hidden",)
    for what, tensor in (("input", input), *zip(names, states or (), strict=False)):
        check_tensor(name, what, tensor)
        if tensor.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected {what} to be 1D or 2D, got {tensor.dim()}D instead")
    if input.dim() == 1:
        input = input.unsqueeze(0)
        states = None if states is None else tuple(state.unsqueeze(0) for state in states)
    if states is None:
        zeros = input.new_zeros(input.shape[0], cell.hidden_size)
        states = (zeros, zeros)
    return input, states


def _weights(cell: torch.nn.RNNCellBase) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


class RNNCell(torch.nn.RNNCell):
    """:class:`torch.nn.RNNCell` through :func:`pyops.functional.rnn_tanh_cell` or ``rnn_relu_cell``."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(
                f"RNNCell: Unknown nonlinearity: {self.nonlinearity!r}; it must be 'tanh' or 'relu'"
            )
        function = F.rnn_tanh_cell if self.nonlinearity == "tanh" else F.rnn_relu_cell
        x, states = _arguments(self, input, None if hx is None else (hx,))
        output = function(x, states[0], *_weights(self))
        return output if input.dim() == 2 else output.squeeze(0)


class GRUCell(torch.nn.GRUCell):
    """:class:`torch.nn.GRUCell` through :func:`pyops.functional.gru_cell`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        x, states = _arguments(self, input, None if hx is None else (hx,))
        output = F.gru_cell(x, states[0], *_weights(self))
        return output if input.dim() == 2 else output.squeeze(0)


class LSTMCell(torch.nn.LSTMCell):
    """:class:`torch.nn.LSTMCell` through :func:`pyops.functional.lstm_cell`."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        x, states = _arguments(self, input, None if hx is None else tuple(hx))
        h, c = F.lstm_cell(x, (states[0], states[1]), *_weights(self))
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))
