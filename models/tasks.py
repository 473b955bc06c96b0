"""What a network is trained for: its loss, and the measure that judges its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .data.dataset import Dataset
from .errors import NetworkError, TrainError


class PerceptronLoss(nn.Module):
    """max(0, -y f(x)) with y = -1 or 1 for targets 0 or 1, the mean over the batch.

    Its gradient is -y x for a sample on the wrong side and 0 for any other, so that gradient descent with
    batches of one sample and learning rate 1 is Rosenblatt's rule. A sample on the boundary counts as wrong,
    or training would never leave zero weights.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        error = output * (1 - 2 * target)
        return torch.where(error >= 0, error, 0.0).mean()


@dataclass(frozen=True)
class Loss:
    """``label`` is what curves are labelled with, ``layer`` the class in a layer library, by ``options``."""

    label: str
    layer: str | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, layers: ModuleType) -> nn.Module:
        """The loss module, of the layer library ``layers``."""
        return PerceptronLoss() if self.layer is None else getattr(layers, self.layer)(**self.options)


#: By the names that recipes call them by.
LOSSES = {
    "cross_entropy": Loss("cross-entropy", "CrossEntropyLoss"),
    "label_smoothing": Loss("smoothed cross-entropy", "CrossEntropyLoss", {"label_smoothing": 0.1}),
    "binary_cross_entropy": Loss("binary cross-entropy", "BCEWithLogitsLoss"),
    "perceptron": Loss("perceptron loss", None),
    "squared_error": Loss("squared error", "MSELoss"),
    "absolute_error": Loss("absolute error", "L1Loss"),
    "huber": Loss("Huber loss", "HuberLoss"),
}


@dataclass(frozen=True)
class Measure:
    """A number next to the loss: ``total`` sums it up, ``finish`` is applied to the mean over all targets."""

    name: str
    total: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[float], float]


@dataclass(frozen=True)
class Task:
    """``losses`` are those of ``LOSSES`` that fit; the first is taken where none is asked for.

    ``shown_loss`` is the name and a function of the mean loss that tells a reader more than the loss itself.
    """

    name: str
    losses: tuple[str, ...]
    measure: Measure | None
    shown_loss: tuple[str, Callable[[float], float]] | None = None
    has_classes: bool = True
    #: One output, the score of class 1.
    binary: bool = False
    #: Targets are above 0, as their logarithms are taken.
    positive: bool = False
    #: Inputs are characters, and every one of them has a target.
    reads_text: bool = False

    @property
    def shown(self) -> list[str]:
        """Names of the results to show: the function of the loss and the measure, else the loss."""
        names = [named[0] for named in (self.shown_loss,) if named is not None]
        names += [] if self.measure is None else [self.measure.name]
        return names or ["loss"]

    def num_outputs(self, network: str, data: Dataset) -> int:
        """Outputs that a network, called ``network`` in errors, needs for ``data``.

        Raises:
            NetworkError: its inputs or its targets are not of this task's kind.
        """
        if (data.kind == "text") != self.reads_text:
            wanted = "text" if self.reads_text else "images or rows"
            raise NetworkError(f"{network} is trained on {wanted}, but {data.name} has {data.kind}")
        if bool(data.class_names) != self.has_classes:
            kinds = ("classes", "values") if self.has_classes else ("values", "classes")
            raise NetworkError(f"{network} predicts {kinds[0]}, but {data.name} has {kinds[1]}")
        if self.binary and data.num_outputs != 2:
            raise NetworkError(f"{network} tells 2 classes apart, but {data.name} has {data.num_outputs}")
        if self.positive and float(data.train_targets.min()) <= 0:
            least = float(data.train_targets.min())
            raise NetworkError(f"{network} predicts values above 0, but {data.name} has {least:g}")
        return 1 if self.binary else data.num_outputs

    @property
    def loss(self) -> Loss:
        """What is minimised."""
        return LOSSES[self.losses[0]]

    def with_loss(self, name: str | None) -> Task:
        """The same task with the loss called ``name``; None leaves its own.

        Raises:
            TrainError: no such loss, or it does not fit.
        """
        if name is None:
            return self
        if name not in self.losses:
            choice = ", ".join(self.losses)
            raise TrainError(f"loss {name!r} does not fit a network for {self.name}; choose of {choice}")
        return replace(self, losses=(name,))

    def loss_target(self, targets: Tensor) -> Tensor:
        """Targets as the loss wants them: labels of a binary task become a column of numbers."""
        return targets.unsqueeze(1).float() if self.binary else targets

    def predict(self, outputs: Tensor) -> Tensor:
        """Labels [N], of text [N, steps], or values [N, outputs]."""
        if not self.has_classes:
            return outputs
        return _side(outputs) if self.binary else outputs.argmax(1)


def _side(scores: Tensor) -> Tensor:
    return (scores.squeeze(1) > 0).long()


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets).sum()


def _binary_hits(scores: Tensor, targets: Tensor) -> Tensor:
    return (_side(scores) == targets).sum()


def _perplexity(loss: float) -> float:
    """The number of equally likely classes that a cross-entropy of ``loss`` hesitates between."""
    return math.exp(min(loss, 700.0))  # infinity is no JSON; a model so bad is worse than no model


def _squared_log_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    # A network may predict negative prices before it has learned: the clamp keeps the logarithms finite.
    return (outputs.clamp(min=1).log() - targets.log()).square().sum()


_ACCURACY = Measure("accuracy", _hits, float)
_BINARY_ACCURACY = Measure("accuracy", _binary_hits, float)
_LOG_RMSE = Measure("log_rmse", _squared_log_errors, math.sqrt)

CLASSIFICATION = Task("classification", ("cross_entropy", "label_smoothing"), _ACCURACY)
LOGISTIC = Task("logistic", ("binary_cross_entropy", "perceptron"), _BINARY_ACCURACY, binary=True)
PERCEPTRON = Task("perceptron", ("perceptron", "binary_cross_entropy"), _BINARY_ACCURACY, binary=True)
#: A class for every character: the one that follows it.
LANGUAGE = Task(
    "language",
    ("cross_entropy",),  # the perplexity is of no other
    _ACCURACY,
    shown_loss=("perplexity", _perplexity),
    reads_text=True,
)
_OF_VALUES = ("squared_error", "absolute_error", "huber")
REGRESSION = Task("regression", _OF_VALUES, None, has_classes=False)
#: Errors of prices count relative to the price: root mean square of log prediction - log price.
PRICES = Task("prices", _OF_VALUES, _LOG_RMSE, has_classes=False, positive=True)
