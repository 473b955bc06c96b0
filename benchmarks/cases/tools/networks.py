"""What the cases that measure whole networks share: training steps and inference.

The networks are those of :mod:`pyops.models`, made through ``pyops.convert``; the baselines are their torch
twins: eager, eager in channels_last, and ``torch.compile``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from pyops.models import get_network, layer_library
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pyops

from ...measure.case import SEED, TRAINING_STEP, Case, Traffic
from ...measure.contender import Contender, Inputs
from ...measure.contenders import kernel_backends, set_backend

NUM_CLASSES = 10


class Run(ABC):
    """A network at work on one batch, in ``inputs``."""

    inputs: Inputs

    @abstractmethod
    def call(self) -> tuple[torch.Tensor, ...]:
        """What is measured."""

    @abstractmethod
    def check(self) -> tuple[torch.Tensor, ...]:
        """Results to compare; the network is afterwards as it was before."""

    @abstractmethod
    def compiled(self) -> Run:
        """This run, by ``torch.compile``."""


@dataclass(frozen=True)
class NetworkCase(Case):
    """A case whose contenders are runs of a network."""

    network: str = ""
    num_classes: int = NUM_CLASSES
    network_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        op: str,
        mode: str,
        network: str,
        images: tuple[int, ...],
        options: Mapping[str, Any],
        *,
        inputs: Callable[[torch.device], Inputs],
        least_error: float,
        num_classes: int = NUM_CLASSES,
        reads_text: bool = False,
        channels_last: bool = True,
    ) -> Self:
        """The case of ``network`` with ``options``, in ``mode``, on images or texts of that shape."""
        width = f" width {options['width']}" if "width" in options else ""
        return cls(
            op,
            f"{network}{width} {list(images)}",
            inputs=inputs,
            traffic=_traffic(
                network, images, options, num_classes, reads_text, training=mode == TRAINING_STEP
            ),
            modes=(mode,),
            differentiable=(),
            least_error=least_error,
            channels_last=channels_last and not reads_text,
            network=network,
            num_classes=num_classes,
            network_options=options,
        )

    def run(self, library: str, inputs: Inputs, dtype: torch.dtype | None = None) -> Run:
        """What is measured, of the network of layer library ``library`` in ``dtype`` (that of ``inputs``)."""
        raise NotImplementedError

    def contenders(
        self, mode: str, device: torch.device, *, compiled: bool, extra: Sequence[str] = ()
    ) -> list[Contender]:
        inputs = self.build(device)
        layouts = [("", inputs)]
        if self.channels_last:
            last = {**inputs, "images": inputs["images"].to(memory_format=torch.channels_last)}
            layouts.append((" channels_last", last))
        made = [
            _contender(f"pyops {backend}{suffix}", self.run("pyops", given), backend)
            for backend in kernel_backends(device)
            for suffix, given in layouts
        ]
        made.append(_contender("eager", self.run("torch", inputs)))
        if compiled:
            made.append(_contender("compile", self.run("torch", inputs).compiled()))
        if self.channels_last:
            made.append(_contender("channels_last", self.run("torch", last)))
        return made + [_contender(name, run) for name, run in self.extra_runs(extra, inputs).items()]

    def extra_runs(self, names: Sequence[str], inputs: Inputs) -> dict[str, Run]:
        """Of the baselines that are no torch those that know this network."""
        return {}

    def reference(self, mode: str, device: torch.device) -> tuple[torch.Tensor, ...]:
        return self.run("torch", self.build(device), torch.float64).check()

    def make_network(
        self,
        library: str,
        images: torch.Tensor,
        prepare: Callable[[nn.Module], object] = lambda net: None,
        dtype: torch.dtype = torch.float32,
    ) -> nn.Module:
        """The network for ``images``, in their memory format, the same numbers every time.

        ``prepare`` changes it before it is converted.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            net = get_network(self.network).build(
                tuple(images.shape[1:]),
                self.num_classes,
                layers=layer_library(library),
                **self.network_options,
            )
            prepare(net)
        # What a user would write to make the most of each library.
        if library == "pyops":
            net = pyops.convert(net)
        net = net.to(images.device, dtype)
        return net if images.is_contiguous() else net.to(memory_format=torch.channels_last)


def _contender(name: str, run: Run, backend: str | None = None) -> Contender:
    subject = {"subject": True, "before_block": partial(set_backend, backend)} if backend else {}
    return Contender(name, run.call, run.inputs, checked=run.check, **subject)


def _traffic(
    network: str,
    images: tuple[int, ...],
    options: Mapping[str, Any],
    num_classes: int,
    reads_text: bool,
    *,
    training: bool,
) -> Callable[[str], Traffic]:
    """FLOPs as torch counts them; bytes of images and parameters (training: and gradients), which must move.

    Forward, backward and update read each parameter, the update its gradient, too; both are written once.
    Activations could stay in a large enough cache.
    """

    def of(mode: str) -> Traffic:
        with torch.device("meta"):
            net = get_network(network).build(images[1:], num_classes, layers=nn, **options).train(training)
            with FlopCounterMode(display=False) as counter:
                logits = net(torch.empty(images, dtype=torch.int64 if reads_text else None))
                if training:
                    logits.sum().backward()
            parameters = 4 * sum(parameter.numel() for parameter in net.parameters())
        read = 4 * torch.Size(images).numel() + parameters * (4 if training else 1)
        written = 2 * parameters if training else 4 * logits.numel()
        return Traffic(read, written, counter.get_total_flops())

    return of
