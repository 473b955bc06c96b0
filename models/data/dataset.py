"""A data set in memory, as the trainer reads it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import DataError
from .table_encoding import Encoding

_RESIZED_BYTES = 2**30
_EVALUATION_PIXELS = 2**20
_EVALUATION_TEXTS = 256

_Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Unlabelled:
    """Inputs without targets, to be predicted: names of the rows, and headings of names and predictions."""

    inputs: torch.Tensor
    names: tuple[str, ...]
    heading: str
    target: str


@dataclass(frozen=True)
class Dataset:
    """Inputs with their targets, split in two.

    Inputs are images, float32 in [0, 1] of shape [N, C, H, W], rows of a table, float32 [N, features], or
    pieces of text, int64 [N, steps]. Targets are labels, int64 of shape [N] (of text [N, steps]), or values,
    float32 of shape [N, outputs]; then there are no ``class_names``.

    ``side`` is set where images are resized as they are read (:meth:`resized`): read them through
    :meth:`train_batch` and :meth:`batches`. ``validation`` holds inputs and targets that were taken from the
    training part (:meth:`with_validation`). ``solution`` holds the weight and the bias of the linear map
    that made the targets, where one did. ``unlabelled`` are rows to be predicted when training is over.
    ``encoding`` is how the rows of a CSV table were made numbers.
    """

    name: str
    train_inputs: torch.Tensor
    train_targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor
    class_names: tuple[str, ...] = ()
    side: int | None = None
    validation: _Pair | None = None
    solution: _Pair | None = None
    unlabelled: Unlabelled | None = None
    encoding: Encoding | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as it is read: (C, H, W) of an image, (features,) of a row, (steps,) of text."""
        shape = tuple(self.train_inputs.shape[1:])
        return shape if self.side is None else (shape[0], self.side, self.side)

    @property
    def kind(self) -> str:
        """What the inputs are: ``"images"``, ``"rows"`` or ``"text"``."""
        if not self.train_inputs.is_floating_point():
            return "text"
        return "images" if self.train_inputs.dim() == 4 else "rows"

    @property
    def num_outputs(self) -> int:
        """Number of classes, or of values to predict."""
        return len(self.class_names) or self.train_targets.shape[1]

    def resized(self, side: int | None) -> Dataset:
        """The same data with square images of ``side`` pixels; None leaves them as they are.

        They are resized at once where the result takes little memory, since a network sees every image many
        times. Otherwise they are resized a batch at a time, on the device that holds them: that costs little
        next to a training step on images so large, and a GPU does it while the host prepares the next step.

        Raises:
            DataError: ``side`` is not positive, or there are no images.
        """
        lazy = self.with_side(side)
        number = len(self.train_inputs) + len(self.test_inputs)
        if lazy is self or number * math.prod(lazy.input_shape) * 4 > _RESIZED_BYTES:
            return lazy
        validation = self.validation and (_resize(self.validation[0], side), self.validation[1])
        return replace(
            self,
            train_inputs=_resize(self.train_inputs, side),
            test_inputs=_resize(self.test_inputs, side),
            validation=validation,
        )

    def with_side(self, side: int | None) -> Dataset:
        """As :meth:`resized`, but all images are resized as they are read, and none now."""
        if side is None or self.input_shape[1:] == (side, side):
            return self
        if self.kind != "images":
            raise DataError(f"{self.name} has no images to resize")
        if side < 1:
            raise DataError(f"{self.name}: images can be resized to 1 pixel or more, got {side}")
        return replace(self, side=side)

    def train_batch(self, index: torch.Tensor) -> _Pair:
        """Training inputs and targets by their numbers, int64 [B]."""
        return self._read(self.train_inputs[index]), self.train_targets[index]

    def batches(self, part: str = "test") -> Iterator[_Pair]:
        """Inputs and targets of the ``test`` or ``validation`` part, in order.

        The batches are so small that a network's activations need little memory.
        """
        if self.kind == "text":
            size = _EVALUATION_TEXTS
        else:
            size = max(1, min(1024, _EVALUATION_PIXELS // math.prod(self.input_shape[-2:])))
        inputs, targets = (self.test_inputs, self.test_targets) if part == "test" else self.validation
        for batch, truth in zip(inputs.split(size), targets.split(size), strict=True):
            yield self._read(batch), truth

    def with_validation(self, share: float, seed: int) -> Dataset:
        """The same data with a random ``share`` of the training part as its validation part.

        Raises:
            DataError: one of the two would be empty.
        """
        number = len(self.train_targets)
        taken = round(number * share)
        if not 0 < taken < number:
            raise DataError(
                f"{self.name}: a validation share of {share:g} of {number} samples leaves a part empty"
            )
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
        return self._split(order[taken:], order[:taken])

    def fold(self, index: int, folds: int) -> Dataset:
        """The same data with the ``index``-th of ``folds`` equal parts of the training part for validation.

        Raises:
            DataError: fewer than two folds, or more than samples.
        """
        number = len(self.train_targets)
        if not 2 <= folds <= number:
            raise DataError(f"{self.name}: folds must be from 2 to {number} (its samples), got {folds}")
        order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
        parts = list(order.tensor_split(folds))
        held_out = parts.pop(index)
        return self._split(torch.cat(parts), held_out)

    def _split(self, kept: torch.Tensor, held_out: torch.Tensor) -> Dataset:
        return replace(
            self,
            train_inputs=self.train_inputs[kept],
            train_targets=self.train_targets[kept],
            validation=(self.train_inputs[held_out], self.train_targets[held_out]),
        )

    def checksum(self) -> int:
        """CRC-32 of the training part: whether a run that is resumed still has the same data."""
        sum_so_far = 0
        for tensor in (self.train_inputs, self.train_targets):
            sum_so_far = zlib.crc32(tensor.contiguous().numpy(), sum_so_far)
        return sum_so_far

    def _read(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs if self.side is None else _resize(inputs, self.side)

    def to(self, device: torch.device) -> Dataset:
        """The same data with all tensors on ``device``."""
        return replace(
            self,
            train_inputs=self.train_inputs.to(device),
            train_targets=self.train_targets.to(device),
            test_inputs=self.test_inputs.to(device),
            test_targets=self.test_targets.to(device),
            validation=_moved(self.validation, device),
            solution=_moved(self.solution, device),
        )


def _moved(pair: _Pair | None, device: torch.device) -> _Pair | None:
    return None if pair is None else (pair[0].to(device), pair[1].to(device))


def _resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images [N, C, H, W] as [N, C, side, side], bilinear, averaging where they shrink."""
    return nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
