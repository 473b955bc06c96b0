"""Steps recorded as a CUDA graph, on a stand-in for CUDA. No GPU has run the tests that are marked so."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from pyops.models.recipe import Recipe
from pyops.models.training.optimization import Updater
from torch import nn

import pyops
from pyops import cuda_graph
from tests.suite import training
from tests.suite.training import CPU, trainer_of

pytestmark = pytest.mark.usefixtures("without_pictures")


class FakeGraph:
    """Stands for CUDA in the module: a recording does nothing, and a replay repeats the step."""

    def __init__(self, monkeypatch, results=2):
        self.results = results
        self.recorded = self.replayed = 0
        self.generators = ()
        monkeypatch.setattr(cuda_graph, "on_side_stream", lambda step: step())
        monkeypatch.setattr(cuda_graph, "record", self.record)
        monkeypatch.setattr(cuda_graph, "_gpu", lambda model, example: CPU)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    def record(self, step, generators):
        self.recorded += 1
        self.generators = generators

        def replay():
            self.replayed += 1
            for ours, theirs in zip(results, step(), strict=True):
                ours.copy_(theirs)

        results = (torch.zeros(()), torch.zeros((), dtype=torch.float64))[: self.results]
        return replay, results


def test_graphed_steps_are_the_steps(monkeypatch):
    """Warm-up, recording, replays and the short last batch of an epoch: together the same training."""
    recipe = Recipe(num_epochs=1, lr=0.1, batch_size=200, decay_every=1, lr_decay=0.5)
    plain, graphed = trainer_of(recipe), trainer_of(recipe)
    fake = FakeGraph(monkeypatch)
    graphed._graphed_step = cuda_graph.GraphedStep(graphed._step)
    for trainer in (plain, graphed):
        trainer.train_epoch()
        trainer.train_epoch()
    assert graphed.progress.step_losses == plain.progress.step_losses
    assert graphed.progress.history == plain.progress.history
    # Of 16 steps 3 warm up, and 2 have but 37 samples.
    assert (fake.recorded, fake.replayed) == (1, 16 - 3 - 2)


def test_recorded_steps_see_the_learning_rate_change():
    recipe = Recipe(num_epochs=1, lr=1.0, batch_size=1, cuda_graph=True, decay_every=1, lr_decay=0.5)
    updater = Updater(nn.Linear(1, 1), recipe, CPU)
    rate = updater.optimizer.param_groups[0]["lr"]
    updater.optimizer.step()
    updater.end_epoch(1.0)
    assert (rate.item(), updater.lr) == (0.5, 0.5)
    state = updater.state_dict()
    other = Updater(nn.Linear(1, 1), recipe, CPU)
    rate = other.optimizer.param_groups[0]["lr"]
    other.load_state_dict(state)
    assert other.optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_cuda_graph(tmp_path, optimizer):
    options = {"device": "cuda", "epochs": 2, "optimizer": optimizer, "decay_every": 1, "lr": 0.01}
    plain = training.run(tmp_path / "plain", "mlp", **options)
    graphed = training.run(tmp_path / "graphed", "mlp", cuda_graph=True, **options)
    assert graphed["step_losses"] == pytest.approx(plain["step_losses"], abs=1e-4)


# ---- pyops.graphed_step


def network(seed=0, device="cpu"):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), pyops.nn.Dropout(0.5), pyops.nn.ReLU(), nn.Linear(16, 3)).to(
        device
    )


def batches(sizes, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    pairs = [
        (torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes
    ]
    return [(inputs.to(device), targets.to(device)) for inputs, targets in pairs]


def losses_of(step, optimizer, data):
    """With a learning rate that falls in the middle; the masks of dropout are those of the seed."""
    torch.manual_seed(2)
    losses = []
    for number, batch in enumerate(data):
        if number == len(data) // 2:
            optimizer.param_groups[0]["lr"] *= 0.1
        losses.append(step(*batch).item())
    return losses


def plain_step(model, optimizer):
    def step(inputs, targets):
        optimizer.zero_grad()
        loss = pyops.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_graphed_step_trains_as_the_calls_in_a_row(monkeypatch, momentum):
    fake = FakeGraph(monkeypatch, results=1)
    data, results = batches([4, 4, 4, 4, 3, 4, 4, 4, 4, 4]), []
    for graphed in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        step = plain_step(model, optimizer)
        if graphed:
            step = pyops.graphed_step(model, pyops.functional.cross_entropy, optimizer, data[0])
        results.append((losses_of(step, optimizer, data), [p.detach().clone() for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))
    # 3 steps warm up, one has another shape; the learning rate changed once.
    assert (fake.recorded, fake.replayed) == (2, 6)


def test_results_and_batches_of_replays_are_not_overwritten(monkeypatch):
    FakeGraph(monkeypatch, results=1)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = batches([4] * 6)
    step = pyops.graphed_step(model, nn.functional.cross_entropy, optimizer, data[0])
    copies = [tuple(t.clone() for t in batch) for batch in data]
    losses = [step(*batch) for batch in data]
    assert len({loss.data_ptr() for loss in losses}) == len(data)
    assert not any(loss.requires_grad for loss in losses)
    assert all(
        torch.equal(a, b) for pair in zip(data, copies, strict=True) for a, b in zip(*pair, strict=True)
    )


def test_a_recording_gets_the_generators_and_no_cached_casts(monkeypatch):
    """torch.cuda itself replaced: what is asked of it, in which order."""
    calls = []

    class Graph:
        def register_generator_state(self, generator):
            calls.append(("register", generator))

        def replay(self):
            calls.append("replay")

    @contextmanager
    def capture(graph):
        calls.append("begin")
        yield
        calls.append("end")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: calls.append("clear"))
    generator = torch.Generator()
    replay, results = cuda_graph.record(lambda: (calls.append("step"), "results")[1], [generator])
    replay()
    assert results == "results"
    assert calls == [("register", generator), "clear", "begin", "step", "end", "replay"]


def test_graphed_step_says_that_there_is_no_gpu(monkeypatch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = (model, nn.functional.cross_entropy, optimizer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="CUDA graphs, and torch finds no GPU"):
        pyops.graphed_step(*arguments, batches([4])[0])
    with pytest.raises(ValueError, match="example must have the model's arguments and the targets"):
        pyops.graphed_step(*arguments, torch.zeros(2, 6))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"on one GPU, got model on \['cpu'\], example on \['cpu'\]"):
        pyops.graphed_step(*arguments, batches([4])[0])


def test_graphed_step_refuses_an_optimizer_that_counts_on_the_host(monkeypatch):
    monkeypatch.setattr(cuda_graph, "_gpu", lambda model, example: SimpleNamespace(type="cuda"))
    model = network()
    with pytest.raises(ValueError, match=r"make it with Adam\(..., capturable=True\)"):
        pyops.graphed_step(
            model, nn.functional.cross_entropy, torch.optim.Adam(model.parameters()), batches([4])[0]
        )


@pytest.mark.gpu
def test_graphed_step_on_a_gpu():
    data, losses = batches([64] * 8, "cuda"), []
    for graphed in (False, True):
        model = network(device="cuda")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, capturable=True)
        step = plain_step(model, optimizer)
        if graphed:
            step = pyops.graphed_step(model, pyops.functional.cross_entropy, optimizer, data[0])
        losses.append(losses_of(step, optimizer, data))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
