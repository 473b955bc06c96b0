"""The graphs that TensorBoard gets, and networks that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pyops.models.data.load import load_data
from pyops.models.registry import Network, get_network
from pyops.models.training.events import log_graph
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter


@pytest.mark.parametrize(
    ("name", "layer"), [("lenet", "Conv2d"), ("batchnorm_lenet", "BatchNorm"), ("rnn", "RNN")]
)
def test_a_graph_has_the_layers_and_draws_nothing(tmp_path: Path, name: str, layer: str) -> None:
    network = get_network(name)
    data = load_data(network.data).with_side(network.recipe_for(network.data).resize)
    outputs = network.task.num_outputs(name, data)
    before = torch.get_rng_state()
    with SummaryWriter(str(tmp_path)) as events:
        assert log_graph(events, network, data, outputs, {}) is None
    assert torch.equal(torch.get_rng_state(), before)
    graph = EventAccumulator(str(tmp_path)).Reload().Graph()
    assert any(layer in node.name for node in graph.node)


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today")


def test_a_network_without_a_graph_is_told_of(tmp_path: Path, capsys) -> None:
    digits = load_data("digits")
    network = Network("mine", lambda *_, **__: Untraceable(), get_network("mlp").recipe)
    with SummaryWriter(str(tmp_path)) as events:
        assert log_graph(events, network, digits, 10, {}) == "not today"
    assert capsys.readouterr().out == ""
