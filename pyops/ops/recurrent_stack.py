"""The public recurrent functions: layers and cells, by the names and arguments of ``torch.lstm`` and others.

One direction of one layer is ``recurrent.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import backends
from ..dtypes import autocast, autocasts
from ..kinds import GRU, LSTM, RNN_RELU, RNN_TANH
from .dropout import dropout as drop
from .recurrent import GATES, Weights, one_direction
from .tools.checks import ArgumentError, check_device, check_floating, check_shape, check_tensor, number

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell"]

_NAMES = {RNN_TANH: "rnn_tanh", RNN_RELU: "rnn_relu", LSTM: "lstm", GRU: "gru"}


def rnn_tanh(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
    *,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Layers of h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), as ``torch.rnn_tanh``.

    The whole sequence of a layer and direction is one call of a kernel. All recurrent functions have these
    arguments; the LSTM's ``hx`` is a pair and its result has c_n as well.

    Args:
        input: shape (T, N, I) or, with ``batch_first``, (N, T, I); with ``batch_sizes`` (R, I), the data of a
            ``torch.nn.utils.rnn.PackedSequence``.
        hx: the first h, shape (layers * directions, N, H); for the LSTM a pair of h and c.
        params: the parameters in the order of ``torch.nn.RNN.parameters()``: for each layer and direction
            weight_ih, weight_hh, bias_ih and bias_hh (with ``has_biases``), and weight_hr of an LSTM that
            projects its output to P < H.
        dropout: probability of an element of a layer's output to be zeroed, in all layers but the last, while
            ``train``; the masks are those of :func:`pyops.functional.dropout`.
        batch_sizes: of a ``PackedSequence``: int64 on the CPU, not increasing.

    Returns:
        The last layer's output, shape (T, N, directions * H), (N, T, directions * H) or
        (R, directions * H), and the last h, shaped as ``hx``. A gradient of a gradient works, through the
        formula in torch's operations.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of wrong type, value, shape, dtype or device.
    """
    return _function(
        RNN_TANH, input, (hx,), params, has_biases, num_layers, dropout, train, bidirectional, batch_first,
        batch_sizes,
    )[:2]  # fmt: skip


def rnn_relu(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
    *,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Layers of h_t = relu(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh); see :func:`rnn_tanh`."""
    return _function(
        RNN_RELU, input, (hx,), params, has_biases, num_layers, dropout, train, bidirectional, batch_first,
        batch_sizes,
    )[:2]  # fmt: skip


def gru(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
    *,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Layers of gated recurrent units (Cho et al. 2014; torch's variant, which resets W_hn h + b_hn).

    r, z = sigmoid(W_i x + b_i + W_h h + b_h), n = tanh(W_in x + b_in + r (W_hn h + b_hn)),
    h = n + z (h - n); see :func:`rnn_tanh`.
    """
    return _function(
        GRU, input, (hx,), params, has_biases, num_layers, dropout, train, bidirectional, batch_first,
        batch_sizes,
    )[:2]  # fmt: skip


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
    *,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layers of long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers 1999).

    i, f, o = sigmoid(...), g = tanh(...), c = f c + i g, h = o tanh(c); see :func:`rnn_tanh`.
    """
    output, h_n, c_n = _function(
        LSTM, input, tuple(hx), params, has_biases, num_layers, dropout, train, bidirectional, batch_first,
        batch_sizes,
    )  # fmt: skip
    assert c_n is not None
    return output, h_n, c_n


def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of :func:`rnn_tanh`: input (N, I), hx (N, H), as ``torch.rnn_tanh_cell``, whose errors are
    raised for a small one."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    if _prefers_torch("rnn_tanh_cell", input, (hx,), weights):
        return torch.rnn_tanh_cell(input, hx, *weights[:4])
    return _cell(RNN_TANH, input, (hx,), weights)[0]


def rnn_relu_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of :func:`rnn_relu`: input (N, I), hx (N, H), as ``torch.rnn_relu_cell``."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    if _prefers_torch("rnn_relu_cell", input, (hx,), weights):
        return torch.rnn_relu_cell(input, hx, *weights[:4])
    return _cell(RNN_RELU, input, (hx,), weights)[0]


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of :func:`gru`: input (N, I), hx (N, H), as ``torch.gru_cell``."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    if _prefers_torch("gru_cell", input, (hx,), weights):
        return torch.gru_cell(input, hx, *weights[:4])
    return _cell(GRU, input, (hx,), weights)[0]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of :func:`lstm`: input (N, I), hx a pair of h and c (N, H), as ``torch.lstm_cell``."""
    weights = Weights(w_ih, w_hh, b_ih, b_hh)
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"lstm_cell: hx must be a pair of h and c, got {type(hx).__name__}")
    if _prefers_torch("lstm_cell", input, tuple(hx), weights):
        return torch.lstm_cell(input, hx, *weights[:4])
    h, c = _cell(LSTM, input, tuple(hx), weights)
    assert c is not None
    return h, c


# ------------------------------------------------------------------------------------------------ layers


def _function(
    kind: int,
    input: Tensor,
    hx: tuple[Tensor, ...],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    name = _NAMES[kind]
    directions = 2 if bidirectional else 1
    layers = _grouped(name, params, has_biases, num_layers * directions)
    dropout = number(name, "dropout", dropout)
    if not 0.0 <= dropout <= 1.0:
        raise ArgumentError(f"{name}: dropout must be a probability between 0 and 1, got {dropout}")
    _check_states(name, kind, hx)
    _check_sequence(name, input, batch_sizes)
    input, hx, layers = _cast(name, input, hx, layers)
    transposed = batch_first and batch_sizes is None
    x = input.transpose(0, 1) if transposed else input
    size = x.shape[1] if batch_sizes is None else None
    _check_layers(name, kind, x, hx, layers, num_layers, directions, size)
    if batch_sizes is not None:
        _check_batch_sizes(name, batch_sizes, x, hx[0])
        batch_sizes = batch_sizes.contiguous()
    first = [_rows(state) for state in hx]
    states: list[list[Tensor]] = [[], []]
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            c_0 = first[1][at] if kind == LSTM else None
            output, h_n, c_n = one_direction(
                x, layers[at], first[0][at], c_0, batch_sizes, kind, direction == 1
            )
            outputs.append(output)
            states[0].append(h_n)
            if c_n is not None:
                states[1].append(c_n)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if train and dropout > 0.0 and layer + 1 < num_layers:
            x = drop(x, dropout)
    c_n = torch.stack(states[1]) if kind == LSTM else None
    return (x.transpose(0, 1) if transposed else x), torch.stack(states[0]), c_n


def _rows(state: Tensor) -> tuple[Tensor, ...]:
    """The states of all layers and directions; of one, a view, whose gradient is no copy."""
    return (state.squeeze(0),) if state.shape[0] == 1 else state.unbind(0)


def _grouped(name: str, params: Sequence[Tensor], has_biases: bool, count: int) -> list[Weights]:
    """``params`` as ``count`` sets of weights."""
    for at, param in enumerate(params):
        if not (isinstance(param, Tensor) and param.is_floating_point()):  # the name costs more than this
            check_floating(name, f"params[{at}]", param)
    each = 4 if has_biases else 2
    if name == "lstm" and len(params) == count * (each + 1):
        each += 1
    if count < 1 or len(params) != count * each:
        raise ArgumentError(
            f"{name}: params must hold {count} sets (layers x directions) of {each} tensors, "
            f"got {len(params)}"
        )
    sets = [params[at : at + each] for at in range(0, len(params), each)]
    if has_biases:
        return [Weights(*tensors) for tensors in sets]
    return [Weights(tensors[0], tensors[1], weight_hr=tensors[2] if each == 3 else None) for tensors in sets]


def _check_states(name: str, kind: int, hx: tuple[Tensor, ...]) -> None:
    if kind == LSTM and len(hx) != 2:
        raise ArgumentError(f"{name}: hx must be a pair of h and c, got {len(hx)} tensors")
    for at, state in enumerate(hx):
        check_tensor(name, _state_name(kind, at), state)


def _state_name(kind: int, at: int) -> str:
    return f"hx[{at}]" if kind == LSTM else "hx"


def _check_sequence(name: str, input: Tensor, batch_sizes: Tensor | None) -> None:
    check_floating(name, "input", input)
    rank = 3 if batch_sizes is None else 2
    if input.dim() != rank:
        raise ArgumentError(f"{name}: input must have {rank} dimensions, got shape {tuple(input.shape)}")


def _check_batch_sizes(name: str, batch_sizes: Tensor, x: Tensor, h: Tensor) -> None:
    check_tensor(name, "batch_sizes", batch_sizes)
    if batch_sizes.dtype is not torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
        raise ArgumentError(
            f"{name}: batch_sizes must be a vector of int64 on the CPU, got {batch_sizes.dtype} of shape "
            f"{tuple(batch_sizes.shape)} on {batch_sizes.device}"
        )
    if torch.compiler.is_compiling():  # the values are not known; the kernels check them
        return
    sizes = batch_sizes.tolist()
    if not sizes:
        raise RuntimeError(f"{name}: the sequence length must be larger than 0, batch_sizes is empty")
    if sizes[-1] < 1 or any(a < b for a, b in itertools.pairwise(sizes)):
        raise ArgumentError(f"{name}: batch_sizes must be positive and not increase, got {sizes}")
    if sizes[0] != h.shape[1] or sum(sizes) != x.shape[0]:
        raise ArgumentError(
            f"{name}: batch_sizes must begin with the batch size {h.shape[1]} of hx and sum up to the "
            f"{x.shape[0]} rows of input, got {sizes}"
        )


def _check_layers(
    name: str,
    kind: int,
    x: Tensor,
    hx: tuple[Tensor, ...],
    layers: list[Weights],
    num_layers: int,
    directions: int,
    batch: int | None,
) -> None:
    """Shapes of the states and of the weights, layer by layer."""
    if batch is not None and x.shape[0] == 0:
        raise RuntimeError(f"{name}: the sequence length must be larger than 0, input has no steps")
    if layers[0].weight_hh.dim() != 2:
        raise ArgumentError(
            f"{name}: weight_hh must have 2 dimensions, got shape {tuple(layers[0].weight_hh.shape)}"
        )
    hidden = layers[0].weight_hh.shape[0] // GATES[kind]
    size = hidden if layers[0].weight_hr is None else layers[0].weight_hr.shape[0]
    rows = hx[0].shape[1] if batch is None and hx[0].dim() == 3 else batch
    for at, state in enumerate(hx):
        wanted = (num_layers * directions, rows, size if at == 0 else hidden)
        if state.shape != wanted:
            if name.endswith("_cell") and state.shape[-1] != wanted[-1]:
                raise RuntimeError(
                    f"{name}: hidden{at} has inconsistent hidden_size: got {state.shape[-1]}, "
                    f"expected {wanted[-1]}"
                )
            which = f"hidden[{at}]" if kind == LSTM else "hidden"
            raise RuntimeError(
                f"{name}: {_state_name(kind, at)}: Expected {which} size {wanted} "
                f"(layers x directions, batch, hidden), got {tuple(state.shape)}"
            )
    features = x.shape[-1]
    for at, weights in enumerate(layers):
        if at >= directions:
            features = size * directions
        _check_weights(name, kind, weights, features, hidden, size)


def _check_weights(name: str, kind: int, weights: Weights, features: int, hidden: int, size: int) -> None:
    gates = GATES[kind] * hidden
    meaning = f"{GATES[kind]} gates of {hidden} units"
    if weights.weight_ih.dim() == 2 and weights.weight_ih.shape[1] != features:
        wanted = weights.weight_ih.shape[1]
        if name.endswith("_cell"):
            raise RuntimeError(f"{name}: input has inconsistent input_size: got {features} expected {wanted}")
        raise RuntimeError(
            f"{name}: input.size(-1) must be equal to input_size. Expected {wanted}, got {features}"
        )
    check_shape(name, "weight_ih", weights.weight_ih, (gates, features), meaning + ", input features")
    check_shape(name, "weight_hh", weights.weight_hh, (gates, size), meaning + ", features of h")
    for what, bias in (("bias_ih", weights.bias_ih), ("bias_hh", weights.bias_hh)):
        if bias is not None:
            check_shape(name, what, bias, (gates,), meaning)
    if weights.weight_hr is not None:
        check_shape(name, "weight_hr", weights.weight_hr, (size, hidden), "projected, units")


def _cast(
    name: str, input: Tensor, hx: tuple[Tensor, ...], layers: list[Weights]
) -> tuple[Tensor, tuple[Tensor, ...], list[Weights]]:
    """The tensors in one dtype: autocast's where it is on; otherwise they must agree."""
    if autocasts(input):
        layers = [Weights._make(autocast(input, *weights)[1:]) for weights in layers]
        input, *states = autocast(input, *hx)
        hx = tuple(states)
    dtype, where = input.dtype, input.device
    for tensors in (hx, *layers):
        for tensor in tensors:
            if tensor is not None and (tensor.dtype is not dtype or tensor.device != where):
                _check_same_kind(name, input, hx, layers)
    return input, hx, layers


def _check_same_kind(name: str, input: Tensor, hx: tuple[Tensor, ...], layers: list[Weights]) -> None:
    for what, tensor in _named(hx, layers):
        if tensor.dtype is not input.dtype:
            raise ArgumentError(
                f"{name}: input and {what} must have the same dtype, got {input.dtype} and {tensor.dtype}"
            )
        check_device(name, what, tensor, input)


def _named(hx: tuple[Tensor, ...], layers: list[Weights]) -> Iterator[tuple[str, Tensor]]:
    for state in hx:
        yield "hx", state
    for weights in layers:
        for what, tensor in zip(Weights._fields, weights, strict=True):
            if tensor is not None:
                yield what, tensor


# ------------------------------------------------------------------------------------------------- cells


def _prefers_torch(name: str, input: Tensor, hx: tuple[Tensor, ...], weights: Weights) -> bool:
    """Whether a step is torch's (see :func:`backends.prefers_torch`).

    Each number of a gate, which is a whole product, counts as four elements.
    """
    one_bias = (weights.bias_ih is None) != (weights.bias_hh is None)
    tensors = [input, *hx, *weights[:2], *(w for w in weights[2:] if w is not None)]
    if one_bias or len(hx) != 1 + (name == "lstm_cell") or not all(isinstance(t, Tensor) for t in tensors):
        return False  # torch does not have it, or the checks refuse it
    if not input.dim() == hx[0].dim() == weights.weight_hh.dim() == 2 or autocasts(input):
        return False
    elements = 4 * input.shape[0] * weights.weight_hh.shape[0]
    return elements > 0 and backends.prefers_torch(name, *tensors, elements=elements)


def _cell(kind: int, input: Tensor, hx: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, Tensor | None]:
    name = _NAMES[kind] + "_cell"
    _check_states(name, kind, hx)
    for what, tensor in (("weight_ih", weights.weight_ih), ("weight_hh", weights.weight_hh)):
        check_tensor(name, what, tensor)
    for what, tensor in (("input", input), *_named(hx, [weights])):
        check_floating(name, what, tensor)
    if input.dim() != 2 or hx[0].dim() != 2:
        raise ArgumentError(
            f"{name}: input and hx must have 2 dimensions, got shapes {tuple(input.shape)} and "
            f"{tuple(hx[0].shape)}"
        )
    if input.shape[0] != hx[0].shape[0]:
        raise RuntimeError(
            f"{name}: input has batch size {input.shape[0]}, hx {hx[0].shape[0]}; they must be equal"
        )
    input, hx, (weights,) = _cast(name, input, hx, [weights])
    x = input.unsqueeze(0)
    _check_layers(name, kind, x, tuple(h.unsqueeze(0) for h in hx), [weights], 1, 1, x.shape[1])
    c_0 = hx[1] if kind == LSTM else None
    output, _, c_n = one_direction(x, weights, hx[0], c_0, None, kind, False)
    return output.squeeze(0), c_n
