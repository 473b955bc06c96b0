"""Whose backend a call uses: the context's that called it, in threads, tasks, autograd and torch.compile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pyops
import pyops.functional as F
from pyops import backends

_X = torch.zeros(2, 3)


def used() -> str:
    """The backend that serves a CPU tensor here and now."""
    handles = backends.resolve(_X)
    return "reference" if handles is None else handles.backend


def in_thread(function: Callable[[], object]) -> None:
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def test_overlapping_threads_leave_the_process_as_it_was() -> None:
    """The choice was a global, which the last thread to leave set to what another had asked for."""
    entered, left = threading.Event(), threading.Event()
    seen = []

    def longer() -> None:
        with pyops.use_backend("reference"):
            entered.set()
            assert left.wait(30)
            seen.append(used())

    thread = threading.Thread(target=longer)
    thread.start()
    assert entered.wait(30)
    with pyops.use_backend("cpp"):
        assert used() == pyops.get_backend() == "cpp"
    assert pyops.get_backend() is None
    assert used() == "cpp"
    left.set()
    thread.join(30)
    assert seen == ["reference"]
    assert pyops.get_backend() is None


def test_a_context_ends_where_it_began_whatever_is_set_within() -> None:
    with pyops.use_backend("reference"):
        with pyops.use_backend(None):
            assert used() == "cpp"
            assert pyops.get_backend() is None
        pyops.set_backend("cpp")
        assert pyops.get_backend() == "cpp"
        in_thread(lambda: check(None))
    check(None)


def check(wanted: str | None) -> None:
    assert pyops.get_backend() == wanted
    assert used() == (wanted or "cpp")


def test_new_threads_begin_with_the_backend_of_the_process() -> None:
    pyops.set_backend("reference")
    try:
        in_thread(lambda: check("reference"))
        with pyops.use_backend("cpp"):
            in_thread(lambda: check("reference"))
            check("cpp")
        with pyops.use_backend(None):
            check(None)
        check("reference")
    finally:
        pyops.set_backend(None)


def test_an_error_leaves_the_backend() -> None:
    with pytest.raises(KeyError), pyops.use_backend("reference"):
        raise KeyError
    check(None)
    with pytest.raises(pyops.backends.BackendError), pyops.use_backend("no such backend"):
        pass
    check(None)


def test_tasks_have_their_own() -> None:
    async def task(name: str | None, seen: list[str | None]) -> None:
        with pyops.use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(pyops.get_backend())
                await asyncio.to_thread(lambda: seen.append(pyops.get_backend()))

    async def main() -> dict[str | None, list[str | None]]:
        names = ("reference", "cpp", None)
        seen: dict[str | None, list[str | None]] = {name: [] for name in names}
        await asyncio.gather(*(task(name, seen[name]) for name in names))
        return seen

    assert all(set(seen) == {name} for name, seen in asyncio.run(main()).items())


class _Deep(torch.autograd.Function):
    """Backward within backward, until the engine goes on in a thread of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, levels: int, seen: list[Any]) -> torch.Tensor:
        ctx.levels, ctx.seen = levels, seen
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        levels, seen = ctx.levels, ctx.seen
        seen.append((threading.get_ident(), pyops.get_backend(), used()))
        if levels:
            with torch.enable_grad():
                _Deep.apply(torch.ones(1, requires_grad=True), levels - 1, seen).sum().backward()
        return grad, None, None


def test_threads_of_autograd_see_the_backend_of_who_called_backward() -> None:
    seen: list[tuple[int, str | None, str]] = []
    with pyops.use_backend("reference"):
        _Deep.apply(torch.ones(1, requires_grad=True), 80, seen).sum().backward()
    of_others = [backends for thread, *backends in seen if thread != threading.get_ident()]
    assert of_others, "the engine did not take another thread; the test needs more levels"
    assert of_others[0] == ["reference", "reference"]


def test_backward_uses_what_forward_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere, and when the context has ended."""
    x = torch.randn(700, 600, requires_grad=True)
    with pyops.use_backend("cpp"):
        loss = F.cross_entropy(F.linear(F.dropout(x, 0.5), torch.randn(50, 600)), torch.zeros(700).long())
    monkeypatch.setattr(backends, "resolve", lambda *_: pytest.fail("backward asked for a backend"))
    in_thread(loss.backward)
    assert x.grad is not None


def test_recomputation_sees_the_backend_of_backward() -> None:
    seen = []

    def block(x: torch.Tensor) -> torch.Tensor:
        seen.append(used())
        return F.softmax(x, 1)

    x = torch.randn(700, 600, requires_grad=True)
    with pyops.use_backend("reference"):
        checkpoint(block, x, use_reentrant=False).sum().backward()
    assert seen == ["reference", "reference"]


def test_compiled_functions_follow_the_thread_that_calls_them() -> None:
    calls = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        kind = "cpp" if any(name.startswith("pyops.") for name in names) else "reference"

        def run(*arguments: torch.Tensor) -> object:
            calls.append(kind)
            return graph.forward(*arguments)

        return run

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: F.softmax(x, 1), backend=backend, fullgraph=True)
    x = torch.randn(700, 600)

    def in_reference() -> None:
        with pyops.use_backend("reference"):
            compiled(x)

    compiled(x)
    in_reference()
    with pyops.use_backend("reference"):
        in_thread(lambda: compiled(x))
        compiled(x)
    in_thread(in_reference)
    compiled(x)
    assert calls == ["cpp", "reference", "cpp", "reference", "reference", "cpp"]


def test_use_backend_within_a_compiled_function() -> None:
    torch._dynamo.reset()

    def function(x: torch.Tensor) -> torch.Tensor:
        with pyops.use_backend("reference"):
            y = F.softmax(x, 1)
        return F.softmax(y, 1)

    x = torch.randn(700, 600)
    torch.testing.assert_close(torch.compile(function, backend="eager")(x), function(x))
    check(None)
