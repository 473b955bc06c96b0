"""SyncBatchNorm: two processes together compute what one computes on the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import pyops
import pyops.nn
from tests.suite.processes import end_process_of_group

_ROWS = 5  # of a whole batch of 8, those of process 0


def _network(layers) -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        layers.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 1),
        layers.BatchNorm2d(4, momentum=None),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 25, 5),
        layers.BatchNorm1d(5, affine=False),
    ).double()


def _batch() -> torch.Tensor:
    return torch.randn(8, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3 + 1


def _join(rank: int, folder: str) -> None:
    """The processes meet in a file: a port found free may be taken before the first of them listens on it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)


def _train(rank: int, folder: str, uneven: bool, channels_last: bool) -> None:
    _join(rank, folder)
    model = pyops.nn.SyncBatchNorm.convert_sync_batchnorm(_network(pyops.nn))
    assert sum(isinstance(m, pyops.nn.SyncBatchNorm) for m in model) == 3
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    rows = _ROWS if uneven else 4
    x = _batch()[:rows] if rank == 0 else _batch()[rows:]
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    for _ in range(2):
        model.zero_grad()
        x.grad = None
        # DDP averages over the processes: a sum over all rows is twice the average of their sums.
        (2 * parallel(x).square().sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.eval()
    saved = {"gradients": gradients, "input": x.grad, "state": model.state_dict(), "eval": model(x).detach()}
    torch.save(saved, Path(folder) / f"{rank}.pt")
    end_process_of_group()


@pytest.mark.parametrize(("uneven", "channels_last"), [(False, True), (True, False)])
def test_two_processes_equal_the_whole_batch(tmp_path: Path, uneven: bool, channels_last: bool) -> None:
    mp.spawn(_train, (str(tmp_path), uneven, channels_last), nprocs=2)
    whole = _network(torch.nn)
    x = _batch().requires_grad_()
    for _ in range(2):
        whole.zero_grad()
        x.grad = None
        whole(x).square().sum().backward()
    whole_gradients = {name: p.grad for name, p in whole.named_parameters()}
    whole.eval()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for part in parts:
        for name, gradient in whole_gradients.items():
            torch.testing.assert_close(part["gradients"][name], gradient, rtol=1e-8, atol=1e-8)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(part["state"][name], value, rtol=1e-9, atol=1e-10)
    for key, wanted in (("input", x.grad), ("eval", whole(x).detach())):
        scale = 2 if key == "input" else 1  # of the loss
        found = torch.cat([part[key] for part in parts])
        torch.testing.assert_close(found, scale * wanted, rtol=1e-8, atol=1e-8)


def _fused(rank: int, folder: str) -> None:
    _join(rank, folder)
    module = pyops.nn.SyncBatchNorm(3, activation="relu")
    x, residual = _batch().float(), _batch().float().flip(0)
    rows = slice(0, 8) if rank == 0 else slice(8, 8)  # process 1 has an empty batch
    x, residual = (t[rows].clone().requires_grad_() for t in (x, residual))
    y = module(x, residual=residual)
    y.sum().backward()
    torch.save(
        {"y": y.detach(), "x": x.grad, "residual": residual.grad, "w": module.weight.grad},
        f"{folder}/{rank}.pt",
    )
    y = module(x, residual=residual)
    with pytest.raises(RuntimeError, match="SyncBatchNorm: there is no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    end_process_of_group()


def test_residual_activation_and_an_empty_batch(tmp_path: Path) -> None:
    mp.spawn(_fused, (str(tmp_path),), nprocs=2)
    full, empty = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    x, residual = (t.requires_grad_() for t in (_batch().float(), _batch().float().flip(0)))
    theirs = torch.nn.BatchNorm2d(3)
    y = (theirs(x) + residual).relu()
    y.sum().backward()
    wanted = {"y": y.detach(), "x": x.grad, "residual": residual.grad, "w": theirs.weight.grad}
    for name, value in wanted.items():
        torch.testing.assert_close(full[name], value, rtol=1e-4, atol=1e-5)
    assert empty["y"].shape == empty["x"].shape == (0, 3, 7, 7)
    assert empty["w"].tolist() == [0.0] * 3


def test_without_processes_it_is_a_batch_norm() -> None:
    ours, theirs = pyops.nn.SyncBatchNorm(3), torch.nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert repr(ours) == repr(torch.nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match=r"SyncBatchNorm: input must have shape \(N, C, \*\), got \(3,\)"):
        ours(torch.ones(3))


def test_conversion_shares_parameters_and_keeps_the_activation() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), pyops.nn.BatchNorm2d(4, eps=0.1, activation="silu"))
    first, second = model
    model.eval()
    converted = pyops.nn.SyncBatchNorm.convert_sync_batchnorm(model, "group")
    assert converted is model
    assert model[0].weight is first.weight
    assert model[1].running_var is second.running_var
    assert (model[1].eps, model[1].activation, model[1].process_group) == (0.1, "silu", "group")
    assert not model[1].training
    assert "activation='silu'" in repr(model[1])
