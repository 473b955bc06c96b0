"""Training steps recorded once as a CUDA graph and replayed: one launch in place of a hundred.

With a small network the host takes longer to launch a step's kernels than a GPU to run them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["graphed_step"]

#: Steps that run as usual before the recording: they allocate the optimiser's state, and choose kernels.
WARM_UP = 3

Results = tuple[Tensor, ...]


class GraphedStep:
    """``step(*batch)`` of a network in training, replayed where that is possible.

    The steps before the recording are steps like any other, and so are those on batches of other shapes than
    the first's, such as the last one of an epoch: all change the same parameters, in the same order.

    Args:
        step: takes tensors, returns tensors; what it does on the host happens in the recording only.
        example: a batch like those to be replayed; None: the first one is.
        settings: numbers on the host that the step depends on; where they change, it is recorded again.
        generators: where the step draws random numbers from, besides torch's default generator.
    """

    def __init__(
        self,
        step: Callable[..., Results],
        example: Sequence[Tensor] | None = None,
        settings: Callable[[], Any] = lambda: None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self._step, self._settings, self._generators = step, settings, generators
        self._steps_done = 0
        self._kind = None if example is None else _kind(example)
        self._batch: list[Tensor] = []
        self._results: Results = ()
        self._replay: Callable[[], None] | None = None
        self._recorded_settings: Any = None

    def __call__(self, *batch: Tensor) -> Results:
        """The step's results, in memory of their own."""
        if self._kind is None:
            self._kind = _kind(batch)
        if self._steps_done < WARM_UP:
            self._steps_done += 1
            return on_side_stream(lambda: self._step(*batch))
        if _kind(batch) != self._kind:
            return self._step(*batch)
        settings = self._settings()
        if self._replay is None or settings != self._recorded_settings:
            self._replay, self._results = None, ()  # and with them the memory of an older recording
            own = self._batch = [tensor.clone() for tensor in batch]
            self._replay, self._results = record(lambda: self._step(*own), self._generators)
            self._recorded_settings = settings
        for ours, theirs in zip(self._batch, batch, strict=True):
            ours.copy_(theirs)
        self._replay()
        return tuple(result.clone() for result in self._results)


def _kind(batch: Sequence[Tensor]) -> list[Any]:
    """What a recording has fixed of its batch."""
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in batch]


def on_side_stream(step: Callable[[], Results]) -> Results:
    """The result of ``step``, run on a side stream, as the steps before a recording must be."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results = step()
    torch.cuda.current_stream().wait_stream(side)
    for result in results:
        result.record_stream(torch.cuda.current_stream())
    return results


def record(
    step: Callable[[], Results], generators: Sequence[torch.Generator] = ()
) -> tuple[Callable[[], None], Results]:
    """Record ``step`` without running it: what replays it, and the tensors for its results.

    A replay draws new random numbers: torch's own generator counts on, and so do ``generators``.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    torch.clear_autocast_cache()  # weights that an earlier step cast would be constants
    with torch.cuda.graph(graph):
        results = step()
    return graph.replay, results


# --------------------------------------------------------------------------------------- a model's training


def graphed_step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    example: Sequence[Tensor],
    *,
    generators: Sequence[torch.Generator] = (),
) -> Callable[..., Tensor]:
    """A training step that is recorded as a CUDA graph and replayed, for networks whose kernels are short.

    The returned ``step(*batch)`` sets the gradients to None, computes ``loss(model(*batch[:-1]), batch[-1])``
    and its gradients, calls ``optimizer.step()``, and returns the loss, detached. Results are those of the
    same calls in a row. The first three steps run as usual, on a side stream, the fourth is recorded, without
    running twice; batches unlike ``example`` in shapes or dtypes run as usual. Random numbers, such as
    dropout's, are new in every step. A step that waits for the GPU (``.item()``, printing a tensor) or
    depends on values on the host cannot be recorded, and torch says so.

    Numbers in the optimizer's groups (a learning rate that a schedule changes, say) are looked at in every
    step; where one has changed, the step is recorded anew. A learning rate that is a tensor on the GPU is
    read by the graph: nothing is recorded anew. Modes (``model.train()``), hooks and autocast are recorded
    as they are at that moment. To change the model, or to load a state, make another step.

    Args:
        model: on a GPU, with all parameters that ``optimizer`` has.
        loss: takes the model's output and the last tensor of a batch.
        optimizer: with ``capturable=True`` where it has such an option (Adam, AdamW).
        example: tensors of a batch on the model's GPU: the model's arguments, then the targets. It is only
            looked at.
        generators: what the model's dropout draws from, where that is not torch's default generator.

    Raises:
        RuntimeError: there is no GPU.
        ValueError: model or example are not on one GPU, or the optimizer counts its steps on the host.
    """
    device = _gpu(model, example)
    _check_optimizer(optimizer)

    def step(*batch: Tensor) -> Results:
        optimizer.zero_grad(set_to_none=True)
        value = loss(model(*batch[:-1]), batch[-1])
        value.backward()
        optimizer.step()
        return (value.detach(),)

    graphed = GraphedStep(step, example, lambda: _numbers(optimizer), generators)

    def run(*batch: Tensor) -> Tensor:
        with torch.cuda.device(device):
            return graphed(*batch)[0]

    return run


def _gpu(model: nn.Module, example: Sequence[Tensor]) -> torch.device:
    """The one GPU that everything is on.

    Raises:
        RuntimeError, ValueError: as :func:`graphed_step` says.
    """
    if isinstance(example, Tensor) or len(example) < 2:
        raise ValueError("graphed_step: example must have the model's arguments and the targets")
    if not torch.cuda.is_available():
        raise RuntimeError("graphed_step records CUDA graphs, and torch finds no GPU here")
    tensors = {"model": [*model.parameters(), *model.buffers()], "example": list(example)}
    devices = {name: {tensor.device for tensor in some} for name, some in tensors.items()}
    everywhere = set().union(*devices.values())
    if len(everywhere) != 1 or next(iter(everywhere)).type != "cuda":
        found = ", ".join(f"{name} on {sorted(map(str, places))}" for name, places in devices.items())
        raise ValueError(f"graphed_step: model and example must be on one GPU, got {found}")
    return everywhere.pop()


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    if not all(group.get("capturable", True) for group in optimizer.param_groups):
        name = type(optimizer).__name__
        raise ValueError(
            f"graphed_step: {name} counts its steps on the host, where a replay does nothing; "
            f"make it with {name}(..., capturable=True)"
        )


def _numbers(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What a recording fixes of the optimizer's groups: numbers, and where on the GPU others are read."""

    def fixed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.data_ptr() if value.is_cuda else value.tolist()
        return [fixed(item) for item in value] if isinstance(value, (list, tuple)) else value

    groups = optimizer.param_groups
    return [{name: fixed(value) for name, value in group.items() if name != "params"} for group in groups]
