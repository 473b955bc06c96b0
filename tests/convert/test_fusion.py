"""pyops.convert: what is fused, and what is not."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

import pyops
from pyops import functional as F
from tests.suite.conversion import Calls, Net, Residual, check, conv, fused_in, images

tf = nn.functional


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Tanh(), nn.SELU(), nn.Softplus(), nn.ELU(), nn.GELU(),
    nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.ReLU(inplace=True), nn.SiLU(inplace=True),
    nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(), nn.Hardtanh(0.0, 6.0), nn.Hardsigmoid(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_every_activation(activation: nn.Module) -> None:
    check(nn.Sequential(conv(), activation), images(), fused=1)
    check(nn.Sequential(nn.Linear(13, 5), activation), images(), fused=1)
    check(nn.Sequential(nn.BatchNorm2d(3), activation), images(), fused=1)
    check(nn.Sequential(conv(), nn.BatchNorm2d(3), activation), images(), fused=1)
    check(nn.Sequential(conv(), activation, nn.MaxPool2d(2)), images(), fused=1)


@pytest.mark.parametrize(
    "activation",
    [nn.LeakyReLU(0.2), nn.ELU(0.5), nn.Softplus(2.0), nn.Softplus(1.0, 10.0), nn.Hardtanh(-2.0, 1.0)],
    ids=repr,
)
def test_other_options_of_activations_are_not_fused(activation: nn.Module) -> None:
    converted = check(nn.Sequential(conv(), activation), images(), fused=0)
    assert "only with its default" in str(pyops.conversion_report(converted))


def test_bounds_that_the_function_takes_and_the_module_refuses_do_not_stop_the_conversion() -> None:
    check(Calls(lambda m, x: tf.hardtanh(m.conv(x), 1.0, 1.0), conv=conv()), images(), fused=0)


def test_a_bound_that_changes_after_the_conversion_is_seen() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU6(inplace=True)).double().eval()
    converted = pyops.convert(copy.deepcopy(model))
    x = images() * 9
    torch.testing.assert_close(converted(x), model(x))
    assert fused_in(converted) == ["0 + 1 + 2"]
    for changed in (model, converted):
        changed[2].max_val = 0.5
    torch.testing.assert_close(converted(x), model(x))


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
    "relu6": lambda x: tf.relu6(x),
    "relu6_inplace_by_position": lambda x: tf.relu6(x, True),
    "relu6_as_hardtanh": lambda x: tf.hardtanh(x, 0.0, max_val=6.0),
    "hardtanh_": lambda x: tf.hardtanh_(x),
    "hardsigmoid": lambda x: tf.hardsigmoid(x, inplace=True),
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
