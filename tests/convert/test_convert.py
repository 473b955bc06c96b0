"""pyops.convert: the same model with pyops's modules and fused kernels, and back; the report."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

import pyops
from pyops.convert.swap import computing_type
from tests.suite.conversion import (
    Calls,
    Net,
    actions_of,
    assert_same,
    check,
    fused_in,
    images,
    refuse_by_value,
)


def test_the_same_objects_of_the_same_classes() -> None:
    model = Net()
    modules, parameters = list(model.modules()), list(model.parameters())
    keys, kinds = list(model.state_dict()), [type(m) for m in modules]
    assert pyops.convert(model) is model
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == kinds
    assert computing_type(model.stem[0]) is pyops.nn.Conv2d
    assert computing_type(model.blocks[0].bn1) is pyops.nn.BatchNorm2d


def test_repr_says_what_is_fused() -> None:
    model = Net()
    text = repr(model)
    lines = repr(pyops.convert(model)).splitlines()
    fused = [line.strip() for line in lines if "fused: " in line]
    assert fused[:2] == ["fused: hidden + relu + dropout", "fused: 0 + 1 + 2"]
    assert "\n".join(line for line in lines if "fused: " not in line) == text
    model.stem[0].register_forward_hook(lambda *_: None)
    assert "fused: 0 + 1 + 2" not in repr(model)
    assert repr(pyops.revert(model)) == text


def test_outputs_gradients_and_buffers_are_the_models() -> None:
    converted = check(Net(), images())
    assert fused_in(converted) == [
        "hidden + relu + dropout",
        "0 + 1 + 2",
        "conv1 + bn1 + relu",
        "conv2 + bn2 + iadd + relu",
        "conv1 + bn1 + relu",
        "conv2 + bn2 + iadd + relu",
        "0 + 1",
    ]


def test_without_fusion() -> None:
    model = Net().double()
    converted = pyops.convert(copy.deepcopy(model), fuse=False)
    assert not fused_in(converted)
    assert type(converted) is Net
    assert_same(converted, model, images())


def test_revert_is_the_inverse() -> None:
    model = Net()
    kinds = [type(m) for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    assert pyops.revert(pyops.convert(model)) is model
    assert [type(m) for m in model.modules()] == kinds
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert pyops.revert(model) is model
    assert set(actions_of(model).values()) == {"left"}


def test_revert_leaves_what_was_made_of_pyops_modules() -> None:
    model = nn.Sequential(pyops.nn.Linear(3, 4), nn.ReLU())
    pyops.revert(pyops.convert(model))
    assert type(model[0]) is pyops.nn.Linear
    assert type(model[1]) is nn.ReLU


def test_converting_twice_is_converting_once() -> None:
    model = pyops.convert(Net())
    report, kinds = str(pyops.conversion_report(model)), [type(m) for m in model.modules()]
    pyops.convert(model)
    assert str(pyops.conversion_report(model)) == report
    assert [type(m) for m in model.modules()] == kinds
    pyops.convert(model, fuse=False)
    assert not fused_in(model)
    assert type(model) is Net


def test_a_leaf_is_converted_too() -> None:
    model = nn.Linear(3, 4)
    assert computing_type(pyops.convert(model)) is pyops.nn.Linear
    assert computing_type(pyops.revert(model)) is type(model) is nn.Linear


def test_a_model_is_freed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        model = pyops.convert(Net())
        model(torch.randn(2, 3, 14, 13))
        gc.collect()  # what tracing left behind
        reference = weakref.ref(model)
        del model
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("function", [pyops.convert, pyops.revert, pyops.conversion_report])
def test_only_modules_can_be_converted(function: object) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        function([nn.Linear(3, 4)])


# The report


def test_report_is_a_list_and_a_table() -> None:
    from rich.console import Console

    model = Net()
    model.blocks[1] = Calls(refuse_by_value, conv=nn.Conv2d(5, 7, 1))
    report = pyops.conversion_report(pyops.convert(model))
    entry = report[0]
    assert (entry.name, entry.module, entry.action) == ("", "Net", "fused")
    assert entry.detail == "hidden + relu + dropout"
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "class", "what", "how", "or", "why"]
    assert lines[2].split() == [".", "Net", "fused", "hidden", "+", "relu", "+", "dropout"]
    assert lines[-1] == report.summary()
    assert "1 not traced" in report.summary()
    assert len(lines) == len(report) + 4
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report)
    assert "hidden + relu + dropout" in console.export_text()


def test_report_of_a_model_without_anything() -> None:
    report = pyops.conversion_report(pyops.convert(nn.ModuleList([nn.ParameterList()])))
    assert report == []
    assert report.summary() == "nothing was converted"
