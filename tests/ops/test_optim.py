"""pyops.optim: torch's fused optimizers, bit for bit, without its way through Python."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pyops import optim

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "nesterov": ("SGD", {"lr": 1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adam": ("Adam", {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    "amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw amsgrad": ("AdamW", {"amsgrad": True, "eps": 1e-3}),
}
by_case = pytest.mark.parametrize("case", CASES)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 3))


def pair(case: str) -> tuple[nn.Module, Any, nn.Module, Any]:
    """A network with each library's optimizer."""
    name, options = CASES[case]
    ours, theirs = network(), network()
    return (
        ours,
        getattr(optim, name)(ours.parameters(), **options),
        theirs,
        getattr(torch.optim, name)(theirs.parameters(), fused=True, **options),
    )


def train(net: nn.Module, optimizer: Any, steps: int, seed: int = 1) -> None:
    torch.manual_seed(seed)
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 7)).square().sum().backward()
        if step % 3 == 2:
            net[0].bias.grad = None  # a parameter that took no part
        optimizer.step()


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


@by_case
def test_steps_are_torchs_and_only_the_first_goes_its_way(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, our_optimizer, theirs, their_optimizer = pair(case)
    assert isinstance(our_optimizer, getattr(torch.optim, CASES[case][0]))
    train(ours, our_optimizer, 1)
    train(theirs, their_optimizer, 1)
    full = pytest.MonkeyPatch()
    full.setattr(type(our_optimizer), "_full_step", lambda self, closure=None: pytest.fail("torch's step"))
    train(ours, our_optimizer, 7, seed=2)
    full.undo()
    train(theirs, their_optimizer, 7, seed=2)
    assert_same(ours, theirs)
    found, expected = our_optimizer.state_dict(), their_optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for mine, its in zip(found["state"].values(), expected["state"].values(), strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[k], its[k]) for k in mine if isinstance(mine[k], torch.Tensor))


@by_case
def test_states_go_from_one_library_to_the_other(case: str) -> None:
    ours, our_optimizer, theirs, their_optimizer = pair(case)
    train(ours, our_optimizer, 3)
    train(theirs, their_optimizer, 3)
    before = copy.deepcopy(our_optimizer.state_dict())
    our_optimizer.load_state_dict(copy.deepcopy(their_optimizer.state_dict()))
    their_optimizer.load_state_dict(before)
    train(ours, our_optimizer, 3)
    train(theirs, their_optimizer, 3)
    assert_same(ours, theirs)


def test_hooks_closures_schedules_and_scalers_work() -> None:
    calls: list[str] = []
    net = network()
    optimizer = optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(net, optimizer, 2)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.25
    before = optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(net, optimizer, 1)
    assert calls == ["before", "after"]
    before.remove()
    after.remove()

    def closure() -> torch.Tensor:
        calls.append("closure")
        return net(torch.ones(1, 7)).sum()

    assert isinstance(optimizer.step(closure), torch.Tensor)
    assert calls[2:] == ["closure"]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    twin, other = copy.deepcopy(net), copy.deepcopy(net)
    for model, kind in ((twin, optim.SGD), (other, torch.optim.SGD)):
        scaled = kind(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        for factor in (1.0, float("inf"), 2.0):  # what overflows is left out
            scaled.zero_grad()
            scaler.scale(model(torch.ones(2, 7)).sum() * factor).backward()
            scaler.step(scaled)
            scaler.update()
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert_same(twin, other)


def test_what_is_not_usual_is_left_to_torch() -> None:
    net, other = network(), network()
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    for model, kind in ((net, optim.SGD), (other, torch.optim.SGD)):
        groups = [
            {"params": [model[0].weight], "lr": 0.2},
            {"params": iter([model[0].bias]), "momentum": 0.0},
            {"params": model[2].parameters(), "nesterov": True},
        ]
        train(model, kind(groups, fused=True, **options), 4)
    assert_same(net, other)
    assert optim.SGD(net.parameters(), foreach=True, lr=0.1).param_groups[0]["fused"] is None
    plain = optim.Adam([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
    assert plain.param_groups[0]["fused"] is None
    parameter = nn.Parameter(torch.zeros(4, 2))
    sparse = optim.SGD([parameter], lr=1.0, fused=False)
    for _ in range(2):
        parameter.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (4, 2), check_invariants=True)
        sparse.step()
    assert parameter.tolist() == [[0, 0], [-2, -2], [0, 0], [0, 0]]
    mixed = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64))]
    both = optim.SGD(mixed, lr=0.25)
    for _ in range(2):
        for parameter in mixed:
            parameter.grad = torch.ones_like(parameter)
        both.step()
    assert [parameter.tolist() for parameter in mixed] == [[0.5] * 3] * 2


def test_gradients_are_dropped_or_zeroed() -> None:
    net = network()
    optimizer = optim.Adam(net.parameters())
    net(torch.ones(1, 7)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in net.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    optimizer.step()  # nothing to do


def test_the_compiler_is_not_imported_for_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was by torch's decorator, which took a second of the time to the first step."""
    torchs = torch.optim.Optimizer.add_param_group
    assert torchs.__wrapped__  # of torch._disable_dynamo, that imports it

    def decorated(self: Any, group: dict[str, Any]) -> None:
        pytest.fail("torch's decorator was called")

    decorated.__wrapped__ = torchs.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.optim.Optimizer, "add_param_group", decorated)
    optimizer = optim.SGD(network().parameters(), lr=0.1)
    assert len(optimizer.param_groups[0]["params"]) == 4


def _relaid(t: torch.Tensor) -> torch.Tensor:
    return t.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("unusual", [False, True])
@pytest.mark.parametrize("relaid", ["gradient", "parameter", "expanded"])
@pytest.mark.parametrize("case", ["momentum", "amsgrad", "adamw"])
def test_gradients_and_states_in_another_order_of_memory_met_the_wrong_parameters(
    case: str, relaid: str, unusual: bool
) -> None:
    """Fused kernels, which pyops alone chooses by itself, go through memory. A closure asks for torch's."""
    name, options = CASES[case]
    results = []
    for library in (optim, torch.optim):
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(2, 3, 4, 5, generator=generator))
        optimizer = getattr(library, name)([p], **options)
        for step in range(3):
            if relaid == "parameter" and step == 1:
                p.data = _relaid(p.data)
            grad = torch.randn(1 if relaid == "expanded" else 2, 3, 4, 5, generator=generator)
            grad = grad.expand(2, 3, 4, 5) if relaid == "expanded" else _relaid(grad)
            if relaid == "parameter" and step == 0:
                grad = grad.contiguous()
            p.grad = grad
            optimizer.step((lambda: None) if unusual else None)
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_group_added_later_has_no_fused_kernel_for_an_expanded_parameter() -> None:
    """It had that of the first group, which writes beside the memory."""
    expanded = torch.zeros(5).expand(3, 5).requires_grad_()
    for kind in (optim.SGD, optim.AdamW):
        optimizer = kind([nn.Parameter(torch.zeros(3))], lr=0.1)
        optimizer.add_param_group({"params": [expanded]})
        optimizer.add_param_group({"params": [torch.zeros(3, 2, requires_grad=True)]})
        assert [bool(group["fused"]) for group in optimizer.param_groups] == [True, False, True]
