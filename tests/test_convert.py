"""pyops.convert: the same model with pyops's modules and fused kernels, and back."""

from __future__ import annotations

import copy
import gc
import io
import random
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops import functional as F
from pyops.convert.plan import Plan

from .suite.processes import run_python


class Residual(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), with modules that are used twice and work in place."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
        y += x
        return self.relu(y)


class Net(nn.Module):
    """Sequential parts, residual blocks, functions in forward, dropout by mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Residual(5, 5), Residual(5, 7, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(7, 11)
        self.out = nn.Linear(11, 4)
        self.p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(self.blocks(self.stem(x))), 1)
        x = nn.functional.dropout(nn.functional.relu(self.hidden(x)), self.p, self.training)
        return self.out(x)


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 3, 14, 13)), dtype=torch.float64, requires_grad=True)


def assert_same(found: nn.Module, wanted: nn.Module, *inputs: Tensor, mode: bool = True) -> None:
    """Equal outputs, gradients and buffers of two modules with equal parameters, in one mode."""
    found.train(mode)
    wanted.train(mode)
    ours, theirs = found(*inputs), wanted(*inputs)
    torch.testing.assert_close(ours, theirs)
    assert ours.stride() == theirs.stride()
    upstream = torch.randn_like(ours)
    leaves = [x for x in inputs if x.requires_grad]
    gradients = [
        torch.autograd.grad(y, [*leaves, *m.parameters()], upstream, allow_unused=True)
        for y, m in ((ours, found), (theirs, wanted))
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(dict(found.named_buffers()), dict(wanted.named_buffers()))


def check(model: nn.Module, *inputs: Tensor, fused: int | None = None) -> nn.Module:
    """Convert a float64 copy of ``model``, compare it with ``model`` in both modes; the copy."""
    model = model.double()
    converted = pyops.convert(copy.deepcopy(model))
    if fused is not None:
        assert len(fused_in(converted)) == fused, str(pyops.conversion_report(converted))
    for mode in (True, False):
        assert_same(converted, copy.deepcopy(model), *inputs, mode=mode)
        converted.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(converted(*inputs), model.eval()(*inputs))
    return converted


def fused_in(model: nn.Module) -> list[str]:
    return [entry.detail for entry in pyops.conversion_report(model) if entry.action == "fused"]


def actions_of(model: nn.Module) -> dict[str, str]:
    return {entry.name: entry.action for entry in pyops.conversion_report(model)}


@pytest.fixture
def plans_used(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans whose groups ran, in the order of their calls."""
    used: list[Plan] = []
    holds = Plan.holds

    def noting(self: Plan, *arguments: object) -> bool:
        held = holds(self, *arguments)
        if held:
            used.append(self)
        return held

    monkeypatch.setattr(Plan, "holds", noting)
    return used


# What stays the same


def test_the_same_objects_with_other_classes() -> None:
    model = Net()
    modules, parameters = list(model.modules()), list(model.parameters())
    keys, text = list(model.state_dict()), repr(model)
    assert pyops.convert(model) is model
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert repr(model) == text
    assert isinstance(model, Net)
    assert type(model.stem[0]) is pyops.nn.Conv2d
    assert type(model.blocks[0].bn1) is pyops.nn.BatchNorm2d


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
    assert type(pyops.convert(model)) is pyops.nn.Linear
    assert type(pyops.revert(model)) is nn.Linear


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


# What is fused


class Calls(nn.Module):
    """A forward given as a function of (self, x)."""

    def __init__(self, function: object, **modules: nn.Module) -> None:
        super().__init__()
        self.__dict__["function"] = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(out: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(3, out, 3, padding=1, **options)


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Tanh(), nn.SELU(), nn.Softplus(), nn.ELU(), nn.GELU(),
    nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.ReLU(inplace=True), nn.SiLU(inplace=True),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_every_activation(activation: nn.Module) -> None:
    check(nn.Sequential(conv(), activation), images(), fused=1)
    check(nn.Sequential(nn.Linear(13, 5), activation), images(), fused=1)
    check(nn.Sequential(nn.BatchNorm2d(3), activation), images(), fused=1)
    check(nn.Sequential(conv(), nn.BatchNorm2d(3), activation), images(), fused=1)
    check(nn.Sequential(conv(), activation, nn.MaxPool2d(2)), images(), fused=1)


@pytest.mark.parametrize(
    "activation", [nn.LeakyReLU(0.2), nn.ELU(0.5), nn.Softplus(2.0), nn.Softplus(1.0, 10.0)], ids=repr
)
def test_other_options_of_activations_are_not_fused(activation: nn.Module) -> None:
    converted = check(nn.Sequential(conv(), activation), images(), fused=0)
    assert "only with its default" in str(pyops.conversion_report(converted))


tf = nn.functional
FUNCTIONS = {
    "relu": lambda x: tf.relu(x),
    "relu_inplace": lambda x: tf.relu(x, inplace=True),
    "relu_by_position": lambda x: tf.relu(x, True),
    "relu_": lambda x: tf.relu_(x),
    "torch_relu": lambda x: torch.relu(x),
    "torch_relu_": lambda x: torch.relu_(x),
    "method": lambda x: x.relu(),
    "method_": lambda x: x.relu_(),
    "sigmoid": lambda x: torch.sigmoid(x),
    "tanh": lambda x: x.tanh(),
    "gelu": lambda x: tf.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: tf.leaky_relu(x),
    "pyops": lambda x: F.silu(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_methods_in_forward(name: str) -> None:
    function = FUNCTIONS[name]
    check(Calls(lambda m, x: function(m.conv(x)), conv=conv()), images(), fused=1)
    pooled = Calls(lambda m, x: tf.max_pool2d(function(m.conv(x)), 2, padding=1), conv=conv())
    check(pooled, images(), fused=1)


ADDITIONS = {
    "add": lambda m, x: tf.relu(m.norm(m.conv(x)) + x),
    "reversed": lambda m, x: tf.relu(x + m.norm(m.conv(x))),
    "torch_add": lambda m, x: tf.relu(torch.add(m.norm(m.conv(x)), x)),
    "method": lambda m, x: m.norm(m.conv(x)).add(x).relu(),
    "method_": lambda m, x: m.norm(m.conv(x)).add_(x).relu_(),
    "without activation": lambda m, x: x + m.norm(m.conv(x)),
    "without norm": lambda m, x: tf.relu(m.conv(x) + x),
    "without conv": lambda m, x: tf.relu(m.norm(x) + x),
    "two convolutions": lambda m, x: tf.relu(m.norm(m.conv(x)) + m.conv(x)),
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_residual_additions(name: str) -> None:
    check(Calls(ADDITIONS[name], conv=conv(), norm=nn.BatchNorm2d(3)), images(), fused=1)


NO_ADDITIONS = {
    "alpha": lambda m, x: torch.add(m.conv(x), x, alpha=2),
    "number": lambda m, x: m.conv(x) + 1,
    "itself": lambda m, x: (lambda y: y + y)(m.conv(x)),
    "subtraction": lambda m, x: m.conv(x) - x,
    "used twice": lambda m, x: (lambda y: y + x + y.relu())(m.conv(x)),
}


@pytest.mark.parametrize("name", NO_ADDITIONS)
def test_what_is_no_residual_addition(name: str) -> None:
    check(Calls(NO_ADDITIONS[name], conv=conv()), images(), fused=0)


def test_a_residual_that_broadcasts_is_added_separately() -> None:
    check(Calls(lambda m, x: tf.relu(m.conv(x) + x[:1]), conv=conv()), images(), fused=1)
    check(Calls(lambda m, x: tf.relu(m.norm(x) + x[:, :1]), norm=nn.BatchNorm2d(3)), images(), fused=1)
    check(
        Calls(lambda m, x: m.norm(m.conv(x)) + x[:1], conv=conv(), norm=nn.BatchNorm2d(3)), images(), fused=1
    )


def test_addition_in_place_to_the_other_operand_is_kept() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x * 1
        y += m.conv(x)
        return y

    check(Calls(forward, conv=conv()), images(), fused=0)


def test_nothing_moves_behind_a_change_in_place() -> None:
    """The convolution would see what relu_ makes of its input."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x * 1
        y = m.norm(m.conv(x))
        return y + x.relu_()

    model = Calls(forward, conv=conv(), norm=nn.BatchNorm2d(3)).double()
    converted = pyops.convert(copy.deepcopy(model))
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x))
    assert fused_in(converted) == ["conv + norm"]
    assert "may change something in place" in str(pyops.conversion_report(converted))


def test_a_result_that_is_changed_in_place_is_its_own() -> None:
    """The fused backward reads the output that dropout's does not."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.drop(tf.relu(m.fc(x)))
        y += 1
        return y

    model = Calls(forward, fc=nn.Linear(13, 5), drop=nn.Dropout(0.3)).double()
    converted = pyops.convert(model)
    converted(images()).sum().backward()
    assert fused_in(converted) == ["fc + relu"]


def test_a_part_that_works_in_place_changes_the_result_before_it() -> None:
    """Whether it is looked into or called as a whole: what is fused before it must not read that result."""
    part = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = nn.Sequential(conv(), nn.Tanh(), nn.MaxPool2d(2), part, nn.Conv2d(3, 3, 1), nn.ReLU())
    converted = check(model, images(), fused=3)
    assert "0 + 1 + 2: _3 changes its result in place" in str(pyops.conversion_report(converted))


def test_a_part_of_a_class_of_ones_own_is_looked_into_where_it_decides() -> None:
    """What comes before a module that nobody knows may be fused if its forward changes nothing."""
    model = nn.Sequential(conv(5), nn.ReLU(), nn.MaxPool2d(2), Residual(5, 5), nn.Sequential(Residual(5, 7)))
    assert "0 + 1 + 2" in fused_in(check(model, images()))


POOLS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "dilation": (1, 2), "ceil_mode": True},
]


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_convolution_and_max_pooling(options: dict) -> None:
    check(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(**options)), images(), fused=1)
    check(nn.Sequential(conv(stride=2), nn.MaxPool2d(**options)), images(), fused=1)
    check(Calls(lambda m, x: tf.max_pool2d(m.conv(x), **options), conv=conv()), images(), fused=1)


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_the_stem_of_a_residual_network(options: dict) -> None:
    check(nn.Sequential(conv(4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(**options)), images(), fused=1)
    check(nn.Sequential(conv(4), nn.BatchNorm2d(4), nn.MaxPool2d(**options)), images(), fused=1)


def test_what_conv2d_max_pool2d_does_not_do_is_left() -> None:
    circular = nn.Sequential(conv(padding_mode="circular"), nn.ReLU(), nn.MaxPool2d(2))
    assert fused_in(check(circular, images())) == ["0 + 1"]
    with_indices = Calls(
        lambda m, x: m.pool(m.conv(x))[0], conv=conv(), pool=nn.MaxPool2d(2, return_indices=True)
    )
    check(with_indices, images(), fused=0)


@pytest.mark.parametrize("padding", ["same", "valid", 2, (0, 1)])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_residual_of_every_padding(padding: object, mode: str) -> None:
    layer = nn.Conv2d(3, 3, (3, 5), padding=padding, dilation=(2, 1), padding_mode=mode)
    check(
        Calls(lambda m, x: tf.relu(m.conv(x) + m.other(x)), conv=layer, other=copy.deepcopy(layer)),
        images(),
        fused=1,
    )


def test_one_image_without_a_batch() -> None:
    check(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)), images(3, 9, 8), fused=1)
    check(Calls(lambda m, x: tf.relu(m.conv(x) + x), conv=conv()), images(3, 9, 8), fused=1)


def test_channels_last() -> None:
    x = images().detach().to(memory_format=torch.channels_last).requires_grad_()
    check(Net().to(memory_format=torch.channels_last), x)


def test_dropout_draws_what_it_draws_unfused() -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Dropout(0.3), nn.Linear(50, 6), nn.Dropout(0.5))
    x = torch.randn(70, 40)
    outputs = []
    for fuse in (False, True):
        torch.manual_seed(3)
        outputs.append(pyops.convert(copy.deepcopy(model), fuse)(x))
    torch.testing.assert_close(*outputs)
    assert (outputs[0] == 0).any()
    torch.testing.assert_close(pyops.convert(model).eval()(x), pyops.revert(model)(x))


def test_random_small_models() -> None:
    """Sequentials of layers in any order, with residual connections around some of them."""
    generator = random.Random(0)
    layers = [
        lambda: conv(bias=generator.random() < 0.5),
        lambda: conv(),
        lambda: nn.BatchNorm2d(3),
        lambda: nn.BatchNorm2d(3, affine=False, momentum=None),
        lambda: generator.choice(
            [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.Sigmoid(), nn.LeakyReLU(0.3)]
        ),
        lambda: nn.MaxPool2d(3, 1, 1),
        lambda: nn.Dropout(0.0),
        lambda: nn.Identity(),
        lambda: nn.Linear(6, 6),
    ]

    fused = 0
    for _ in range(25):
        model = nn.Sequential()
        for _ in range(generator.randint(2, 4)):
            part = nn.Sequential(*(generator.choice(layers)() for _ in range(generator.randint(1, 6))))
            # A copy: what is changed in place by the first layer is not what is added.
            around = generator.random() < 0.5
            model.append(Calls(lambda m, x: tf.relu(m.part(x * 1) + x), part=part) if around else part)
        try:
            fused += len(fused_in(check(Calls(lambda m, x: m.body(x * 1), body=model), images(2, 3, 6, 6))))
        except RuntimeError:  # of torch's layers, one overwrites what another keeps
            with pytest.raises(RuntimeError, match="modified by an inplace"):
                model(images(2, 3, 6, 6) * 1).sum().backward()
    assert fused > 40


# Batch normalisation as part of the weights


def folded_pair(**options: object) -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(conv(5, **options), nn.BatchNorm2d(5), nn.ReLU()).double()
    model(images())
    for parameter in model[1].parameters():
        nn.init.normal_(parameter)
    return pyops.convert(copy.deepcopy(model)).eval(), model.eval()


CHANGES = {
    "in place": lambda m: m[1].running_mean.add_(1),
    "by data": lambda m: m[1].weight.data.mul_(2),
    "weight by data": lambda m: m[0].weight.data.mul_(2),
    "other data": lambda m: setattr(m[0].bias, "data", m[0].bias.data + 1),
    "other tensor": lambda m: setattr(m[1], "bias", nn.Parameter(m[1].bias + 1)),
    "state dict": lambda m: m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}),
    "eps": lambda m: setattr(m[1], "eps", 0.5),
    "dtype": lambda m: m.to(torch.float32).to(torch.float64),
    "training": lambda m: m.train()(torch.ones(2, 3, 4, 5, dtype=torch.float64)).shape and m.eval(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folded_weights_follow_every_change(change: str) -> None:
    found, wanted = folded_pair()
    x = images().detach()
    with torch.no_grad():
        torch.testing.assert_close(found(x), wanted(x))
        for model in (found, wanted):
            CHANGES[change](model)
        torch.testing.assert_close(found(x), wanted(x))


def test_folded_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyops.convert import steps

    calls = []
    fold = steps._fold
    monkeypatch.setattr(steps, "_fold", lambda *modules: calls.append(1) or fold(*modules))
    found, wanted = folded_pair(bias=False)
    x = images()
    with torch.inference_mode():
        found(x)
    with torch.no_grad():
        found(x)
    assert len(calls) == 1
    for model in (found, wanted):  # in a frozen model, gradients go through to the input
        model.requires_grad_(False)
    gradients = [torch.autograd.grad(model(x).sum(), x) for model in (found, wanted)]
    torch.testing.assert_close(*gradients)
    assert len(calls) == 1


def test_a_model_in_evaluation_mode_still_has_gradients() -> None:
    found, wanted = folded_pair()
    assert_same(found, wanted, images(), mode=False)


def test_statistics_of_the_batch_are_never_folded() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    check(nn.Sequential(conv(), norm, nn.ReLU()), images(), fused=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_in_16_bits_is_as_exact_as_torch(dtype: torch.dtype) -> None:
    found, exact = folded_pair()
    x = images(4, 3, 14, 13).detach()
    rounded = copy.deepcopy(exact).to(dtype)
    found.to(dtype)
    with torch.no_grad():
        wanted = copy.deepcopy(rounded).double()(x.to(dtype).double())
        errors = [(model(x.to(dtype)).double() - wanted).abs().max() for model in (found, rounded)]
    assert errors[0] <= 2 * errors[1]


# Where forward cannot be looked into, or must not


def refuse_by_value(module: nn.Module, x: Tensor) -> Tensor:
    y = module.conv(x).relu()
    return y if y.sum() > 0 else y * 2


def refuse_by_random(module: nn.Module, x: Tensor) -> Tensor:
    return module.conv(x).relu() * random.random()


def refuse_by_noise(module: nn.Module, x: Tensor) -> Tensor:
    return module.conv(x).relu() + torch.rand(())


def refuse_by_state(module: nn.Module, x: Tensor) -> Tensor:
    module.calls = getattr(module, "calls", 0) + 1
    return module.conv(x).relu() * module.calls


def refuse_by_no_grad(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = module.conv(x).relu()
    return y + x


def refuse_by_autocast(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return module.conv(x).relu()


def refuse_by_checkpoint(module: nn.Module, x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(lambda y: module.conv(y).relu(), x, use_reentrant=False)


def refuse_by_grad_mode(module: nn.Module, x: Tensor) -> Tensor:
    return module.conv(x).relu() if torch.is_grad_enabled() else x


@pytest.mark.parametrize("name", [name for name in globals() if name.startswith("refuse_by")])
def test_what_cannot_be_traced_runs_layer_by_layer(name: str) -> None:
    model = Calls(globals()[name], conv=conv())
    converted = pyops.convert(copy.deepcopy(model))
    assert actions_of(converted) == {"": "not traced", "conv": "replaced"}
    x = torch.randn(2, 3, 6, 5)
    for grad in (True, False):
        outputs = []
        for m in (converted, model):
            random.seed(0)
            torch.manual_seed(0)
            with torch.set_grad_enabled(grad):
                outputs.append(m(x))
        torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-2)
        assert outputs[0].requires_grad == outputs[1].requires_grad


def test_an_untraceable_part_does_not_keep_others_from_fusing() -> None:
    inner = Calls(refuse_by_value, conv=conv())
    model = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), inner, conv(), nn.BatchNorm2d(3))
    converted = check(model, images(), fused=2)
    assert actions_of(converted)["1"] == "not traced"
    assert "control flow" in str(pyops.conversion_report(converted))


def test_type_of_the_input_may_be_asked_for() -> None:
    """As densely connected networks do, which take a tensor or several."""

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(x, torch.Tensor) or not torch.is_tensor(x):
            x = torch.cat(x, 1)
        return module.conv(x).relu()

    converted = check(Calls(forward, conv=conv()), images(), fused=1)
    x = images()
    torch.testing.assert_close(converted([x[:, :1], x[:, 1:]]), converted(x))


class Options(nn.Module):
    """A forward with optional and named arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, residual: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        y = self.conv(x).relu() * scale
        return y if residual is None else y + residual


def test_optional_arguments(plans_used: list[Plan]) -> None:
    model = Options().double()
    converted = pyops.convert(copy.deepcopy(model))
    x, r = images(), images()
    calls = [((x,), {}), ((x, r), {}), ((x,), {"residual": r}), ((x,), {"scale": 2.0}), ((), {"x": x})]
    for arguments, named in calls:
        torch.testing.assert_close(converted(*arguments, **named), model(*arguments, **named))
    assert len(plans_used) == 1


def test_modes_of_single_modules_count(plans_used: list[Plan]) -> None:
    """A part in evaluation mode inside a model in training, as in frozen batch normalisation."""
    model = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(546, 4)).double()
    converted = pyops.convert(copy.deepcopy(model))
    for m in (model, converted):
        m.train()
        m[1].eval()
    x = images()
    for m in (model, converted):
        m[1].requires_grad_(False)
    outputs = [m(x) for m in (converted, model)]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(converted[1].running_mean, model[1].running_mean)
    assert len(plans_used) == 1


class Switch(nn.Module):
    """A forward that depends on an attribute and on its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.extra = "relu"

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x.relu() if self.extra == "relu" else x.sigmoid()
        return x if self.training else x * 2


def test_attributes_that_forward_reads_are_watched(plans_used: list[Plan]) -> None:
    model = Switch().double()
    converted = pyops.convert(copy.deepcopy(model))
    x = images()
    for mode in (True, False):
        torch.testing.assert_close(converted.train(mode)(x), model.train(mode)(x))
    assert len(plans_used) == 2
    converted.extra = model.extra = "sigmoid"
    torch.testing.assert_close(converted(x), model(x))
    assert len(plans_used) == 2
    pyops.convert(converted)
    torch.testing.assert_close(converted(x), model(x))
    assert len(plans_used) == 3


SWITCH = True


def test_global_constants_that_forward_reads_are_watched(
    plans_used: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu() if SWITCH else x

    converted = pyops.convert(Reader())
    x = torch.randn(1, 3, 4, 5)
    assert converted(x) is not x
    assert len(plans_used) == 1
    monkeypatch.setitem(globals(), "SWITCH", False)
    assert converted(x) is x


@dataclass(frozen=True)
class Unhashable:
    """Has a hash that raises."""

    values: dict


SOMETHING = Unhashable({})


def test_any_global_variable_may_be_near() -> None:
    class Near(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu()

    assert "SOMETHING" in Near.forward.__globals__
    check(Near(), images(), fused=1)


def test_an_activation_whose_option_changes(plans_used: list[Plan]) -> None:
    model = nn.Sequential(conv(), nn.LeakyReLU()).double()
    converted = pyops.convert(copy.deepcopy(model))
    converted[1].negative_slope = model[1].negative_slope = 0.5
    x = images()
    torch.testing.assert_close(converted(x), model(x))
    assert not plans_used


HOOKS = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("before", [True, False])
def test_hooks_see_what_they_saw(register: str, which: int, before: bool) -> None:
    def run(convert: bool) -> list:
        torch.manual_seed(0)
        model = nn.Sequential(conv(), nn.Sigmoid(), nn.Conv2d(3, 3, 1), nn.Tanh()).double()
        seen: list[object] = []
        if convert and not before:
            pyops.convert(model)
        handle = getattr(model[which], register)(lambda module, *tensors: seen.extend(tensors))
        if convert and before:
            pyops.convert(model)
            assert fused_in(model) == ["2 + 3"]
            assert f"a hook wants to see {which}" in str(pyops.conversion_report(model)).replace("_", "")
        elif convert:
            assert not fused_in(model)
            assert "a hook was added" in str(pyops.conversion_report(model))
        seen.append(model(images()))
        seen[-1].sum().backward()
        handle.remove()
        if convert and not before:
            assert fused_in(model) == ["0 + 1", "2 + 3"]
        return seen

    torch.testing.assert_close(run(convert=True), run(convert=False))


def test_hooks_of_a_part_that_was_looked_into() -> None:
    """A group that crosses into a Sequential runs there without calling it, unless somebody listens."""
    model = Calls(lambda m, x: tf.relu(m.body(x) + x), body=nn.Sequential(conv(), nn.BatchNorm2d(3))).double()
    converted = pyops.convert(copy.deepcopy(model))
    assert fused_in(converted) == ["body.0 + body.1 + add + relu", "0 + 1"]
    seen: list[Tensor] = []
    handle = converted.body.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = images()
    torch.testing.assert_close(converted(x), model(x))
    assert len(seen) == 1
    pyops.convert(converted)
    assert fused_in(converted) == ["0 + 1"]
    handle.remove()


def test_global_hooks() -> None:
    model = pyops.convert(nn.Sequential(conv(), nn.ReLU()))
    seen: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m).__name__))
    try:
        model(torch.randn(1, 3, 4, 4))
    finally:
        hook.remove()
    assert seen == ["Conv2d", "ReLU", "Sequential"]


# Structure


def test_parts_of_a_sequential_compute_what_they_did() -> None:
    model = nn.Sequential(
        conv(), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(126, 5), nn.ReLU()
    ).double()
    converted = pyops.convert(copy.deepcopy(model))
    x = images()
    assert len(converted) == 6
    assert [name for name, _ in converted.named_modules()] == [name for name, _ in model.named_modules()]
    for stop in range(1, 7):
        torch.testing.assert_close(converted[:stop](x), model[:stop](x))
    torch.testing.assert_close(converted[1:3](x), model[1:3](x))
    torch.testing.assert_close(converted[1](converted[0](x)), model[1](model[0](x)))
    y = x
    for layer in converted:
        y = layer(y)
    torch.testing.assert_close(y, model(x))
    tail = pyops.convert(converted[:2])
    assert fused_in(tail) == ["0 + 1"]
    torch.testing.assert_close(tail(x), model[:2](x))


EDITS = {
    "append": lambda m: m.append(nn.Sigmoid()),
    "insert": lambda m: m.insert(1, nn.Sigmoid()),
    "remove": lambda m: m.__delitem__(1),
    "replace": lambda m: m.__setitem__(1, nn.Sigmoid()),
    "replace a convolution": lambda m: m.__setitem__(0, copy.deepcopy(m[0])),
}


@pytest.mark.parametrize("edit", EDITS)
def test_modules_added_and_removed_after_the_conversion(edit: str) -> None:
    model = nn.Sequential(conv(), nn.Tanh(), conv(), nn.ReLU()).double()
    converted = pyops.convert(copy.deepcopy(model))
    for m in (model, converted):
        EDITS[edit](m)
    x = images()
    torch.testing.assert_close(converted(x), model(x))
    assert "convert again" in str(pyops.conversion_report(converted))
    assert len(fused_in(pyops.convert(converted))) == (1 if edit == "remove" else 2)
    torch.testing.assert_close(converted(x), model(x))


def test_another_head_as_in_fine_tuning() -> None:
    model = pyops.convert(Net())
    model.out = nn.Linear(11, 9)
    x = torch.randn(2, 3, 14, 13)
    assert model(x).shape == (2, 9)
    assert actions_of(model)["out"] == "left"
    assert fused_in(pyops.convert(model))[0] == "hidden + relu + dropout"
    torch.testing.assert_close(model(x), pyops.revert(model)(x))


def test_shared_modules_and_parameters() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(), conv()
            self.second.weight = self.first.weight
            self.again = self.first
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.again(self.act(self.second(self.act(self.first(x))))))

    converted = check(Shared(), images())
    assert fused_in(converted) == ["first + act", "second + act"]
    assert converted.again is converted.first
    assert converted.second.weight is converted.first.weight
    assert sum(p.numel() for p in converted.parameters()) == 81 + 6


def test_modules_in_lists_and_dicts() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList([conv(), conv()])
            self.acts = nn.ModuleDict({"relu": nn.ReLU(), "tanh": nn.Tanh()})

        def forward(self, x: Tensor) -> Tensor:
            for layer, act in zip(self.convs, self.acts.values(), strict=False):
                x = act(layer(x))
            return torch.cat([x, *(layer(x) for layer in self.convs)], 1)

    model = Branches().double()
    converted = check(model, images(), fused=2)
    for m in (model, converted):
        m.convs[1] = nn.Conv2d(3, 3, 1, dtype=torch.float64)
        m.convs[1].load_state_dict(model.convs[1].state_dict())
    x = images()
    torch.testing.assert_close(converted(x), model(x))


class ScaledConv2d(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_subclasses_of_torchs_modules_are_left() -> None:
    model = nn.Sequential(ScaledConv2d(3, 3, 1), nn.ReLU())
    converted = check(model, images(), fused=0)
    assert type(converted[0]) is ScaledConv2d
    assert "a subclass of torch.nn.Conv2d" in str(pyops.conversion_report(converted))


def test_a_subclass_of_sequential_with_a_forward_of_its_own() -> None:
    class Around(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + input

    converted = check(Around(conv(), nn.BatchNorm2d(3)), images(), fused=1)
    assert fused_in(converted) == ["0 + 1 + add"]


def test_modules_that_pyops_does_not_have_are_left_and_reported() -> None:
    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 5)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(5, 5), nn.ReLU()))
    model = nn.Sequential(quantised, scripted, nn.Bilinear(5, 5, 3), nn.GroupNorm(1, 3))
    kinds = [type(m) for m in model]
    report = str(pyops.conversion_report(pyops.convert(model)))
    assert [type(m) for m in model] == kinds
    assert report.count("no kernel") == 4
    assert "torch.jit.script" in report
    assert model[1](model[0](torch.randn(2, 4))).shape == (2, 5)


def test_transformers_keep_working() -> None:
    """Their layers call functions on the weights of their children, and leave them out in evaluation."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    converted = check(model, x)
    assert type(converted.linear1) is pyops.nn.Linear
    assert actions_of(converted)["self_attn.out_proj"] == "left"


def test_parametrised_weights() -> None:
    def make() -> nn.Module:
        torch.manual_seed(1)
        model = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(546, 6), nn.Tanh())
        nn.utils.parametrizations.weight_norm(model[0])
        nn.utils.parametrizations.orthogonal(model[3])
        return model.double()

    model, converted = make(), pyops.convert(make())
    assert list(converted.state_dict()) == list(model.state_dict())
    assert fused_in(converted) == ["0 + 1", "3 + 4"]
    assert_same(converted, model, images())
    x = images()
    torch.testing.assert_close(copy.deepcopy(converted)(x), model(x))
    nn.utils.parametrize.remove_parametrizations(converted[0], "weight")
    assert type(converted[0]) is pyops.nn.Conv2d
    torch.testing.assert_close(converted(x), model(x))
    pyops.revert(converted)
    assert type(converted[3]).__bases__ == (nn.Linear,)
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_a_hook_makes() -> None:
    def make() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(
            nn.utils.weight_norm(nn.Linear(13, 6)), nn.Tanh(), nn.utils.spectral_norm(conv())
        ).double()

    def forward(model: nn.Module) -> Tensor:
        torch.manual_seed(2)
        model.train()
        return model(torch.randn(2, 3, 4, 13, dtype=torch.float64))

    model, converted = make(), pyops.convert(make())
    torch.testing.assert_close(forward(converted), forward(model))
    assert type(converted[0]) is pyops.nn.Linear
    assert not fused_in(converted)


def test_lazy_modules_fuse_after_their_first_call(plans_used: list[Plan]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5), nn.Tanh())
    torch.manual_seed(1)
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(2, 3, 6, 5)
    outputs = []
    for m in (converted, model):
        torch.manual_seed(2)
        outputs.append(m(x))
    torch.testing.assert_close(*outputs)
    assert not plans_used
    assert type(converted[0]) is pyops.nn.Conv2d
    assert type(converted[3]) is pyops.nn.Linear
    torch.testing.assert_close(converted(x), model(x))
    assert len(plans_used) == 1
    assert fused_in(converted) == ["0 + 1", "3 + 4"]
    pyops.revert(converted)
    assert type(converted[0]) is nn.Conv2d


def test_synchronised_batch_normalisation() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU()))
    converted = pyops.convert(copy.deepcopy(model))
    assert type(converted[1]) is pyops.nn.SyncBatchNorm
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))
    assert type(pyops.revert(converted)[1]) is nn.SyncBatchNorm


def test_pyops_modules_with_an_activation_of_their_own() -> None:
    model = nn.Sequential(pyops.nn.Conv2d(3, 3, 1, activation="tanh"), nn.ReLU())
    assert not fused_in(check(model, images()))


def test_classes_that_list_their_subclasses_hear_nothing() -> None:
    known: list[str] = []

    class Listed(nn.Module):
        def __init_subclass__(cls) -> None:
            known.append(cls.__qualname__)

    class Member(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu()

    before = list(known)
    check(Member(), images(), fused=1)
    assert known == before


# Copies, files, other machinery


def test_copies_are_converted_and_independent() -> None:
    converted = pyops.convert(Net().double())
    clone = copy.deepcopy(converted)
    assert fused_in(clone) == fused_in(converted)
    assert not set(clone.parameters()) & set(converted.parameters())
    x = images()
    torch.testing.assert_close(clone.eval()(x), converted.eval()(x))
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert not torch.equal(clone(x), converted(x))
    assert type(pyops.revert(clone)) is Net
    assert fused_in(converted)


def test_save_and_load() -> None:
    converted = pyops.convert(Net().double())
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert fused_in(loaded) == fused_in(converted)
    x = images()
    torch.testing.assert_close(loaded.eval()(x), converted.eval()(x))
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    plain = Net().double()
    plain.load_state_dict(torch.load(file))
    torch.testing.assert_close(plain.eval()(x), converted(x))


def test_shallow_copy() -> None:
    converted = pyops.convert(nn.Sequential(conv(), nn.ReLU()))
    clone = copy.copy(converted)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(clone(x), converted(x))
    assert clone[0] is converted[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_change_of_dtype(dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    converted = pyops.convert(Net()).to(dtype)
    converted.load_state_dict(model.state_dict())
    x = torch.randn(3, 3, 14, 13, dtype=dtype)
    found = converted.eval()(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, model.eval()(x), rtol=3e-2, atol=3e-2)


def test_autocast() -> None:
    model = Net()
    model.stem[1] = nn.Softplus()  # which autocast computes in float32
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(3, 3, 14, 13)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = converted(x), model(x)
    assert found.dtype is wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2)
    residual = Calls(lambda m, x: m.conv(x) + x, conv=conv())
    with torch.autocast("cpu", torch.bfloat16):
        assert pyops.convert(copy.deepcopy(residual))(x).dtype is residual(x).dtype is torch.float32


def test_optimizers_keep_their_parameters() -> None:
    outcomes = []
    for convert in (True, False):
        torch.manual_seed(1)
        model = Net().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(4):
            if convert and step == 1:
                pyops.convert(model)
            if convert and step == 3:
                pyops.revert(model)
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(images()).square().sum().backward()
            optimizer.step()
        outcomes.append(dict(model.named_parameters()))
    torch.testing.assert_close(*outcomes)


def test_functional_call_with_other_parameters() -> None:
    model = Net().double().eval()
    converted = pyops.convert(copy.deepcopy(model))
    x = images()
    with torch.no_grad():
        converted(x)  # folds the present ones
        others = {name: p * 2 for name, p in model.named_parameters()}
        found, wanted = (torch.func.functional_call(m, others, (x,)) for m in (converted, model))
    torch.testing.assert_close(found, wanted)


def test_replicas_of_data_parallel_use_their_own_parameters() -> None:
    converted = pyops.convert(nn.Sequential(conv(), nn.ReLU()))
    replica, layer = converted._replicate_for_data_parallel(), converted[0]._replicate_for_data_parallel()
    layer._parameters = {}
    layer.weight, layer.bias = torch.zeros_like(converted[0].weight), torch.zeros(3)
    replica._modules["0"] = layer
    assert not replica(torch.randn(1, 3, 4, 4)).any()


def test_fx_traces_the_forward_that_was_written() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return not list(m.children())

    converted = pyops.convert(Net())
    targets = [str(n.target) for n in Tracer().trace(converted).nodes if n.op == "call_module"]
    assert targets[:4] == ["stem.0", "stem.1", "stem.2", "blocks.0.conv1"]


def test_compile() -> None:
    body = Calls(lambda m, x: tf.relu(m.norm(m.conv(x)) + x), conv=conv(), norm=nn.BatchNorm2d(3))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(546, 5), nn.ReLU()).double()
    converted = pyops.convert(copy.deepcopy(model))
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    for mode in (True, False):
        for m in (converted, model):
            m.train(mode)
        x = images()
        outputs = compiled(x), model(x)
        torch.testing.assert_close(*outputs)
        gradients = [torch.autograd.grad(y.square().sum(), x) for y in outputs]
        torch.testing.assert_close(*gradients)
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model.eval()(x))
    for m in (model, converted):
        m[3] = nn.Sigmoid()
        m[0].norm = nn.Identity()
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling")
def test_export(strict: bool) -> None:
    model = Net().eval()
    converted = pyops.convert(copy.deepcopy(model))
    x = torch.randn(3, 3, 14, 13)
    program = torch.export.export(converted, (x,), strict=strict)
    assert sorted(program.state_dict) == sorted(model.state_dict())
    torch.testing.assert_close(program.module()(x), model(x))


_DDP = """
import sys, torch, pyops
from torch import nn
import torch.distributed as dist
from tests.test_convert import Net
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
torch.set_num_threads(1)
def steps(convert):
    torch.manual_seed(rank)
    model = Net().double()
    if convert == "before": pyops.convert(model)
    model = nn.parallel.DistributedDataParallel(model)
    if convert == "after": pyops.convert(model)
    if convert: assert any(e.action == "fused" for e in pyops.conversion_report(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        torch.manual_seed(10 * rank + step)
        optimizer.zero_grad()
        model(torch.randn(3 + rank, 3, 14, 13, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return list(model.parameters())
wanted = steps(None)
for convert in ("before", "after"):
    torch.testing.assert_close(steps(convert), wanted)
dist.destroy_process_group()
"""


def test_distributed_data_parallel(tmp_path: object) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_python, "-c", _DDP, str(rank), f"{tmp_path}/store") for rank in range(2)]
        for run in runs:
            run.result()


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
