"""pyops.convert: the same model with pyops's modules and fused kernels, and back."""

from __future__ import annotations

import copy
import gc
import random
import weakref

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops import functional as F
from pyops.convert.plan import Plan


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
