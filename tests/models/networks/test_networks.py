"""The networks and their registry."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pyops.models import registry

import pyops.nn
from pyops import models

LIBRARIES = (pyops.nn, torch.nn)

#: Every network with the smallest image it takes, or a small one, and options that keep it small.
SMALL: dict[str, tuple[int, dict]] = {
    "softmax_regression": (8, {}),
    "mlp": (8, {}),
    "mlp_dropout": (8, {}),
    "linear_regression": (8, {}),
    "logistic_regression": (8, {}),
    "perceptron": (8, {}),
    "house_price": (8, {}),
    "lenet": (12, {}),
    "batchnorm_lenet": (12, {}),
    "alexnet": (65, {"width": 16}),
    "nin": (67, {"width": 16}),
    "vgg11": (32, {"width": 16}),
    "vgg13": (32, {"width": 16}),
    "vgg16": (32, {"width": 16}),
    "vgg19": (32, {"width": 16}),
    "googlenet": (16, {"width": 16}),
    "resnet18": (16, {"width": 16}),
    "resnet34": (16, {"width": 16}),
    "resnet50": (16, {"width": 16}),
    "resnet56": (8, {"width": 4}),
}
NETWORKS = tuple(SMALL)
CONVOLUTIONAL = NETWORKS[7:]
#: Of text; see test_language_model.py.
LANGUAGE_MODELS = ("gru", "lstm", "rnn")


def build(name: str, layers=pyops.nn, **options) -> torch.nn.Module:
    side, small = SMALL[name]
    torch.manual_seed(0)
    return models.get_network(name).build((1, side, side), 10, layers=layers, **{**small, **options})


def test_names():
    assert {*NETWORKS, *LANGUAGE_MODELS} == set(models.network_names())


@pytest.mark.parametrize(
    ("name", "nearest"), [("mpl", "mlp"), ("MLP", "mlp"), ("softmax", "softmax_regression")]
)
def test_unknown_network_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown network '{name}'; did you mean '{nearest}'"):
        models.get_network(name)


def test_unknown_network_with_nothing_near_lists_all():
    with pytest.raises(models.NetworkError) as caught:
        models.get_network("zzzz")
    assert all(name in str(caught.value) for name in NETWORKS)
    assert "did you mean" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'mlp' is already registered"):
        models.register("mlp", recipe=models.Recipe(1, 0.1, 1))(lambda: None)


def test_layer_library():
    assert models.layer_library("torch") is torch.nn
    assert models.layer_library("pyops") is pyops.nn
    with pytest.raises(models.NetworkError, match="did you mean 'pyops'"):
        models.layer_library("pyop")


def test_recipes():
    mlp = registry.get_network("mlp")
    notes = models.Recipe(num_epochs=10, lr=0.1, batch_size=256)
    assert mlp.recipe_for("fashion_mnist") == notes
    assert mlp.recipe_for("digits") != notes


@pytest.mark.parametrize("layers", LIBRARIES, ids=lambda library: library.__name__)
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("softmax_regression", {"1.weight": (10, 784), "1.bias": (10,)}),
        (
            "mlp",
            {"1.weight": (256, 784), "1.bias": (256,), "3.weight": (10, 256), "3.bias": (10,)},
        ),
    ],
)
def test_shapes_and_initialisation(name, shapes, layers):
    torch.manual_seed(0)
    net = models.get_network(name).build((1, 28, 28), 10, layers=layers)
    state = net.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes
    for key, value in state.items():
        if key.endswith("bias"):
            assert not value.any()
        else:
            assert value.std().item() == pytest.approx(0.01, rel=0.05)
            assert abs(value.mean().item()) < 0.001
    assert net(torch.rand(5, 1, 28, 28)).shape == (5, 10)


def test_mlp_is_not_linear():
    torch.manual_seed(0)
    net = models.mlp((1, 8, 8), 10)
    x = torch.randn(4, 1, 8, 8)
    assert not torch.allclose(net(x) + net(-x), 2 * net(torch.zeros_like(x)), atol=1e-4)


def test_num_hiddens():
    assert models.mlp((3, 4, 4), 7, num_hiddens=5)[1].weight.shape == (5, 48)


@pytest.mark.parametrize("name", NETWORKS)
def test_twins_start_from_the_same_weights(name):
    ours, theirs = (build(name, layers).state_dict() for layers in LIBRARIES)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# ---- convolutional networks


@pytest.mark.parametrize(
    ("name", "side", "parameters", "last_map"),
    [
        ("lenet", 28, 61_706, (16, 5, 5)),
        ("alexnet", 224, 46_764_746, (256, 5, 5)),
        ("nin", 224, 1_992_166, (10, 5, 5)),
        ("vgg11", 224, 128_806_154, (512, 7, 7)),
        ("vgg13", 224, 128_990_666, (512, 7, 7)),
        ("vgg16", 224, 134_300_362, (512, 7, 7)),
        ("vgg19", 224, 139_610_058, (512, 7, 7)),
        ("batchnorm_lenet", 28, 62_158, (16, 5, 5)),
        ("googlenet", 96, 5_977_530, (1024, 3, 3)),
        ("resnet18", 96, 11_175_370, (512, 3, 3)),
        ("resnet34", 96, 21_283_530, (512, 3, 3)),
        ("resnet50", 96, 23_522_250, (2048, 3, 3)),
        ("resnet56", 32, 852_730, (64, 8, 8)),
    ],
)
def test_full_size_networks_are_those_of_the_notes(name, side, parameters, last_map):
    """Numbers of parameters counted by hand from the papers' layers, for one channel and ten classes."""
    shapes = []
    with torch.device("meta"):
        net = models.get_network(name).build((1, side, side), 10, layers=torch.nn)
        for module in net.modules():
            if isinstance(module, (torch.nn.Flatten, torch.nn.AdaptiveAvgPool2d)):
                module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
        assert net(torch.empty(2, 1, side, side)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert shapes[0] == (2, *last_map)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_layers_are_the_librarys_own(name):
    """Nothing slips past the layer library: pyops' network has none of torch's convolutions and so on."""
    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.MaxPool2d, torch.nn.AvgPool2d, torch.nn.ReLU)
    for layers, package in ((pyops.nn, "pyops"), (torch.nn, "torch")):
        found = [module for module in build(name, layers).modules() if isinstance(module, kinds)]
        assert len(found) > 5
        assert all(type(module).__module__.startswith(package + ".") for module in found)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_initialisation_keeps_the_scale_of_the_signal(name):
    """Weights have the variance of their rule, biases are zero, and logits neither vanish nor explode."""
    net = build(name, width=1) if name == "nin" else build(name)
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            assert module.bias is None or not module.bias.any()
            window = module.weight[0][0].numel() if module.weight.dim() == 4 else 1
            fan_out, fan_in = module.weight.shape[0] * window, module.weight[0].numel()
            xavier = name in ("lenet", "batchnorm_lenet")
            variance = 2 / (fan_in + fan_out) if xavier else 2 / fan_in
            if module.weight.numel() > 1000:
                assert module.weight.var().item() == pytest.approx(variance, rel=0.2)
    side, _ = SMALL[name]
    net.eval()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train()  # without statistics of any data, those of the batch
    logits = net(torch.rand(8, 1, side, side))
    assert 1e-3 < logits.std() < 30


@pytest.mark.parametrize(
    ("name", "side"),
    [("lenet", 12), ("batchnorm_lenet", 12), ("alexnet", 65), ("nin", 67), ("vgg11", 32), ("vgg19", 32)],
)
def test_smallest_image(name, side):
    network, (_, options) = models.get_network(name), SMALL[name]
    assert network.build((3, side, side), 7, **options).eval()(torch.rand(1, 3, side, side)).shape == (1, 7)
    message = f"{name} takes images of at least {side} x {side}, got {side} x {side - 1}"
    with pytest.raises(models.NetworkError, match=message):
        network.build((3, side, side - 1), 7, **options)


@pytest.mark.parametrize("name", ["googlenet", "resnet18", "resnet50", "resnet56"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 18)])
def test_images_of_any_size(name, shape):
    network, (_, options) = models.get_network(name), SMALL[name]
    assert network.build(shape, 7, **options).eval()(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["lenet", "googlenet", "resnet18", "resnet56"])
def test_images_need_three_dimensions(name):
    message = rf"{name} takes images of shape \(C, H, W\), got \(64,\)"
    with pytest.raises(models.NetworkError, match=message):
        models.get_network(name).build((64,), 10)


@pytest.mark.parametrize("name", ["alexnet", "nin", "vgg11", "googlenet", "resnet18", "resnet50", "resnet56"])
def test_width_divides_the_channels(name):
    thin, thinnest = build(name, width=32), build(name, width=10**6)
    assert next(thin.parameters()).shape[0] in ((1,) if name == "resnet56" else (2, 3))
    assert next(thinnest.parameters()).shape[0] == 1
    with pytest.raises(models.NetworkError, match=f"{name}: width must be at least 1"):
        build(name, width=0)


@pytest.mark.parametrize("name", ["alexnet", "nin", "vgg11"])
def test_dropout_is_an_option(name):
    rates = [m.p for m in build(name, dropout=0.25).modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.25] * (1 if name == "nin" else 2)


#: What is fused in each network that has more than one forward: convolutions with all that follows them.
#: Of Inception blocks and residual ones, it is said in the report of their parts.
FUSED = {
    "batchnorm_lenet": {"0 + 1 + 2": 1, "4 + 5 + 6": 1, "10 + 11": 1, "13 + 14": 1},
    "googlenet": {"0 + 1 + 2": 1, "3 + 4": 1, "5 + 6 + 7": 1, "0 + 1": 27, "2 + 3": 18, "1 + 2": 9},
    "resnet18": {"0 + 1 + 2 + 3": 1, "0 + 1 + 2": 8, "body.3 + body.4 + add + relu": 8},
    "resnet50": {"0 + 1 + 2 + 3": 1, "0 + 1 + 2": 16, "3 + 4 + 5": 16, "body.6 + body.7 + add + relu": 16},
    "resnet56": {"0 + 1 + 2": 28, "body.3 + body.4 + add + relu": 27},
}


@pytest.mark.parametrize("name", FUSED)
def test_convert_finds_what_follows_every_convolution(name):
    """Normalisation, activation, addition and pooling are part of the convolution's call."""
    net = pyops.convert(build(name))
    report = pyops.conversion_report(net)
    assert {entry.action for entry in report} <= {"fused", "left"}
    found = Counter(entry.detail for entry in report if entry.action == "fused")
    # The bodies' last convolution by itself, for when somebody calls a body, and projections.
    alone = {f"{i} + {i + 1}" for i in (0, 3, 6)}
    assert {k: n for k, n in found.items() if k not in alone or k in FUSED[name]} == FUSED[name]
    children = {type(module).__name__ for module in net.modules() if not list(module.children())}
    assert children <= {
        "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "Conv2d", "Flatten", "Identity",
        "Linear", "MaxPool2d", "ReLU", "Sigmoid", "ZeroPadded",
    }  # fmt: skip


def test_options_of_a_network():
    assert set(models.get_network("vgg13").options) == {"width", "dropout"}
    assert models.get_network("lenet").options == ()
    with pytest.raises(models.NetworkError, match="lenet has no option 'width'; its options: none"):
        models.get_network("lenet").check_options(["width"])
