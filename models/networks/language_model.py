"""Recurrent language models: read characters, predict the next one.

    character - one-hot or embedding - RNN, LSTM or GRU - linear - a logit per character

The state carries what has been read. Through the many steps of a sequence gradients shrink or grow as powers
of the recurrent weights: the gates of LSTM and GRU let them pass, and what still grows is clipped. The
quality of a model is its perplexity, the exponential of the mean cross-entropy: the number of characters
between which it hesitates.

Source: course notes, "Recurrent networks" and "LSTM"; Zhang et al., Dive into Deep Learning, chapters 9 and
10; Hochreiter and Schmidhuber, Long short-term memory, 1997; Cho et al., 2014, arXiv:1406.1078.
Shapes: characters [N, T], int64 -> logits [N, characters, T].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

import pyops.nn

from ..errors import NetworkError
from ..recipe import Recipe
from ..registry import register
from ..tasks import LANGUAGE
from .tools.shapes import divided

_HIDDEN = 256
_RECIPE = Recipe(num_epochs=10, lr=0.003, batch_size=32, optimizer="adam", clip_norm=1.0)


class LanguageModel(nn.Module):
    """Layers of the ``kind`` ``"RNN"``, ``"LSTM"`` or ``"GRU"`` over characters, and a linear layer.

    Args:
        num_classes: number of different characters.
        hidden: units of each recurrent layer.
        embedding: features of a character's embedding; 0 gives the network one-hot characters.
        num_layers: recurrent layers; ``dropout`` follows all but the last.
        layers: the layer library.
    """

    def __init__(
        self,
        kind: str,
        num_classes: int,
        hidden: int,
        embedding: int,
        num_layers: int,
        dropout: float,
        layers: ModuleType,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding = layers.Embedding(num_classes, embedding) if embedding else None
        self.recurrent = getattr(layers, kind)(embedding or num_classes, hidden, num_layers, dropout=dropout)
        self.output = layers.Linear(hidden, num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.advance(tokens.t())[0].permute(1, 2, 0)

    def advance(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits [T, N, num_classes] after each of ``tokens`` [T, N], and the state after the last."""
        if self.embedding is None:
            features = nn.functional.one_hot(tokens, self.num_classes).to(self.output.weight.dtype)
        else:
            features = self.embedding(tokens)
        hidden, state = self.recurrent(features, state)
        return self.output(hidden), state

    @torch.no_grad()
    def continued(
        self, prompt: torch.Tensor, length: int, generator: torch.Generator, temperature: float = 1.0
    ) -> torch.Tensor:
        """``length`` characters drawn from the model, one by one, to continue ``prompt`` [T].

        Logits are divided by ``temperature``: the lower it is, the likelier the likely ones become.
        """
        was_training = self.training
        self.eval()
        logits, state = self.advance(prompt.unsqueeze(1))
        drawn = []
        for _ in range(length):
            # On the CPU: the same text on every device.
            chances = (logits[-1, 0].double().cpu() / temperature).softmax(0)
            token = torch.multinomial(chances, 1, generator=generator)
            drawn.append(token)
            logits, state = self.advance(token.to(prompt.device).unsqueeze(1), state)
        self.train(was_training)
        return torch.cat(drawn) if drawn else prompt.new_empty(0, device="cpu")


def language_model(
    name: str,
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    width: int = 1,
    embedding: int = 0,
    num_layers: int = 1,
    dropout: float = 0.0,
    layers: ModuleType = pyops.nn,
) -> LanguageModel:
    """A language model over ``num_outputs`` characters, with the recurrent layer ``name`` in capitals.

    ``width`` divides the number of units; the other options are those of :class:`LanguageModel`.

    Raises:
        NetworkError: an option has no such value.
    """
    if embedding < 0 or num_layers < 1:
        raise NetworkError(
            f"{name}: embedding must be at least 0 and num_layers at least 1, got {embedding}, {num_layers}"
        )
    hidden = divided(name, _HIDDEN, width)
    return LanguageModel(name.upper(), num_outputs, hidden, embedding, num_layers, dropout, layers)


def _register(name: str, notes: str) -> Callable[..., nn.Module]:
    as_named = register(name, notes=notes, recipe=_RECIPE, task=LANGUAGE, data="text")
    return as_named(partial(language_model, name))


rnn = _register("rnn", "004 Recurrent networks")  # of tanh units
lstm = _register("lstm", "002 003 LSTM")
gru = _register("gru", "002 Recurrent networks")
