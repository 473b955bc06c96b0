"""Weights that are packed once for inference on the CPU: those of the weight as it is now."""

from __future__ import annotations

import copy
import gc
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import pyops
from pyops import _library
from pyops.ops.conv2d import algorithms
from pyops.ops.tools import packed

pytestmark = pytest.mark.skipif(
    "cpp" not in _library.loaded, reason="the C++ kernels for the CPU are not built"
)

# Served by winograd and by direct, with panels and blocks of several.
SHAPES = [((1, 48, 7, 5), 80, 1), ((1, 96, 9, 9), 48, 2), ((2, 192, 16, 15), 80, 2)]


def layer(shape: tuple[int, ...], out_channels: int, stride: int) -> pyops.nn.Conv2d:
    torch.manual_seed(0)
    return pyops.nn.Conv2d(shape[1], out_channels, 3, stride, 1).eval()


def is_kept(weight: Tensor) -> bool:
    kept = packed._kept.get(id(weight))
    return kept is not None and kept.packed is not None and kept.packed.numel() > 0


def warm(module: torch.nn.Module, input: Tensor) -> Tensor:
    with torch.no_grad():
        module(input)
        return module(input)


def assert_as_torch(module: pyops.nn.Conv2d, input: Tensor) -> None:
    """Also of a clone, for which nothing is kept: the same bits."""
    with torch.no_grad():
        clone = module.weight.detach().clone()
        options = (module.bias, module.stride, module.padding)
        assert torch.equal(module(input), pyops.functional.conv2d(input, clone, *options))
        expected = torch.nn.functional.conv2d(input, clone, *options)
        torch.testing.assert_close(module(input), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("shape", "out_channels", "stride"), SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_packed_at_the_second_call(
    shape: tuple[int, ...], out_channels: int, stride: int, layout: torch.memory_format
) -> None:
    module = layer(shape, out_channels, stride).to(memory_format=layout)
    input = torch.randn(shape).to(memory_format=layout)
    with torch.no_grad():
        first = module(input)
        assert not is_kept(module.weight)
        second, third = module(input), module(input)
    assert is_kept(module.weight)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert_as_torch(module, input)


def _load(module: torch.nn.Module) -> None:
    module.load_state_dict({name: 2 * t for name, t in module.state_dict().items()})


def _step(module: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(torch.ones(1, *module.weight.shape[1:2], 4, 4)).sum().backward()
    optimizer.step()


def _assign(module: torch.nn.Module) -> None:
    module.weight.data = module.weight.data * 3


def _write_data(module: torch.nn.Module) -> None:
    module.weight.data.mul_(3)


def _round(module: torch.nn.Module) -> None:
    module.half().float()


def _write(module: torch.nn.Module) -> None:
    with torch.no_grad():
        module.weight[0, 0, 0, 0] += 1


def _write_one(module: torch.nn.Module) -> None:
    module.weight.data[3, 5, 1, 2] += 1


def _exchange_two(module: torch.nn.Module) -> None:
    module.weight.data.view(-1)[[40, 41]] = module.weight.data.view(-1)[[41, 40]]


@pytest.mark.parametrize(
    "change", [_load, _step, _assign, _write_data, _write_one, _exchange_two, _round, _write]
)
def test_changes_are_noticed(change: Callable[[torch.nn.Module], None]) -> None:
    shape, out_channels, stride = SHAPES[0]
    module, input = layer(shape, out_channels, stride), torch.randn(shape)
    before = warm(module, input)
    assert is_kept(module.weight)
    change(module)
    assert_as_torch(module, input)
    assert not torch.equal(before, warm(module, input))
    assert is_kept(module.weight)


@pytest.mark.parametrize("factor", [2.0, -1.0])
def test_weights_that_all_change_alike(factor: float) -> None:
    """In sums of 2^n words, a sign or an exponent that changes in all of them vanishes."""
    module, input = layer((1, 128, 6, 6), 128, 1), torch.randn(1, 128, 6, 6)
    with torch.no_grad():
        torch.nn.init.ones_(module.weight)
        torch.nn.init.zeros_(module.bias)
        before = warm(module, input)
        module.weight.data.mul_(factor)
        torch.testing.assert_close(module(input), before * factor)


def test_each_shape_is_packed_for_itself() -> None:
    shape, out_channels, stride = SHAPES[0]
    module = layer(shape, out_channels, stride)
    for side in (5, 8, 8, 5, 5, 12, 3):
        assert_as_torch(module, torch.randn(2, shape[1], side, side + 1))


def test_many_pixels_keep_nothing() -> None:
    module = pyops.nn.Conv2d(16, 16, 3, padding=1).eval()
    warm(module, torch.randn(1, 16, 65, 65))
    assert not is_kept(module.weight)


def test_gradients_keep_nothing() -> None:
    shape, out_channels, stride = SHAPES[0]
    module = layer(shape, out_channels, stride)
    for _ in range(3):
        module(torch.randn(shape)).sum().backward()
    assert id(module.weight) not in packed._kept


def test_it_is_neither_copied_nor_saved() -> None:
    shape, out_channels, stride = SHAPES[0]
    module = layer(shape, out_channels, stride)

    def saved() -> bytes:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        return buffer.getvalue()

    before = len(saved())
    warm(module, torch.randn(shape))
    assert is_kept(module.weight)
    assert len(saved()) == before
    twin = copy.deepcopy(module)
    assert not is_kept(twin.weight)
    with torch.no_grad():
        twin.weight.zero_()
    assert_as_torch(twin, torch.randn(shape))
    assert_as_torch(module, torch.randn(shape))


def test_it_goes_with_the_module_and_when_training_begins() -> None:
    shape, out_channels, stride = SHAPES[0]
    module = layer(shape, out_channels, stride)
    number = id(module.weight)
    warm(module, torch.randn(shape))
    module.train()
    assert number not in packed._kept
    warm(module, torch.randn(shape))
    assert number in packed._kept
    del module
    gc.collect()
    assert number not in packed._kept


def test_threads_share_a_module() -> None:
    shape, out_channels, stride = SHAPES[0]
    module, inputs = layer(shape, out_channels, stride), [torch.randn(shape) for _ in range(8)]
    expected = [module(x).detach() for x in inputs]

    def work(i: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(module(inputs[i]), expected[i]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize("kind", ["empty", "zeros", "short", "misaligned", "other_weight", "other_problem"])
def test_the_raw_op_takes_nothing_but_its_own(kind: str) -> None:
    shape, out_channels, stride = SHAPES[0]
    module, input = layer(shape, out_channels, stride), torch.randn(shape)
    weight, geometry = module.weight.detach(), ([1, 1], [1, 1], [1, 1], 1)
    pack, call = torch.ops.pyops.conv2d_pack_weight, torch.ops.pyops.conv2d_packed_forward
    own = pack(input, weight, *geometry)
    bad = {
        "empty": lambda: own.new_empty(0),
        "zeros": lambda: torch.zeros_like(own),
        "short": lambda: own[:-64].clone(),
        "misaligned": lambda: torch.cat([own[:4], own])[4:],
        "other_weight": lambda: pack(input, weight + 1, *geometry),
        "other_problem": lambda: pack(input, weight, [2, 2], *geometry[1:]),
    }[kind]()
    unchanged = kind in ("empty", "short", "misaligned", "other_problem")  # is no promise of the rest
    right, was_read = call(input, weight, own, None, None, *geometry, 0, 0.0, 0.0, unchanged)
    assert was_read
    output, was_read = call(input, weight, bad, None, None, *geometry, 0, 0.0, 0.0, unchanged)
    assert not was_read
    assert torch.equal(output, right)


def test_small_images_keep_packed_weights() -> None:
    """Read as they lie is how weights are used once: of those that are used again, packed ones are faster."""
    if os.environ.get("PYOPS_CONV2D"):
        pytest.skip("PYOPS_CONV2D is set")
    x, weight = torch.randn(2, 64, 4, 4), torch.randn(64, 64, 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    assert algorithms(x, weight, padding=1).forward == "small_image"
    kept = torch.ops.pyops.conv2d_pack_weight(x, weight, *geometry)
    assert kept.numel() > weight.nbytes
