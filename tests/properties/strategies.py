"""Legal calls of every op, drawn by hypothesis: cases of the shared suite with other shapes and options.

``STRATEGIES`` has one for each public function in the suite's ``OPS``. A case's id is all that its tensors
depend on, so that an example which fails can be made again from what is printed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.suite import ops
from tests.suite.cases import Case
from tests.suite.class_losses import loss_case
from tests.suite.ops import (
    activation,
    avg_pool2d,
    batch_norm,
    conv1d,
    conv2d,
    conv2d_max_pool2d,
    dropout,
    embedding,
    interpolate,
    layer_norm,
    linear,
    linear_cross_entropy,
    loss,
    max_pool2d,
    prelu,
    recurrent,
)

Draw = Callable[[st.SearchStrategy], Any]

#: Below, at and above the lanes of a vector, twice and four times them, and blocks of them; 0 is drawn apart.
LENGTHS = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33, 47, 63, 64, 65, 67, 127, 129]))
FEW = st.integers(1, 5)
FLAG = st.booleans()


def shapes(draw: Draw, least: int = 0, most: int = 4, limit: int = 3000) -> tuple[int, ...]:
    """Of at most ``limit`` elements; one length in 50 is 0."""
    found: list[int] = []
    for i in range(draw(st.integers(least, most))):
        longest = limit // max(1, math.prod(found))
        length = min(draw(LENGTHS if i else st.one_of(FEW, LENGTHS)), max(1, longest))
        found.append(length if draw(st.integers(0, 49)) else 0)
    return tuple(found)


def options(draw: Draw, **choices: st.SearchStrategy) -> dict[str, Any]:
    """Values of some of ``choices``; the others keep their defaults."""
    return {name: draw(values) for name, values in choices.items() if draw(FLAG)}


def pairs(draw: Draw, low: int, high: int) -> Any:
    return draw(st.one_of(st.integers(low, high), st.tuples(st.integers(low, high), st.integers(low, high))))


def both(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def activations(op: str) -> Callable[[Draw], Case]:
    # Gradients of elu and selu are taken from the output, which far below 0 has no digits of exp(x) left.
    scales = [0.01, 1.0] if op in ("elu", "selu") else [0.01, 1.0, 3.0]
    scales += [30.0] if op not in ("elu", "selu", "gelu") else []  # whose formula has no gradient at -30

    def case(draw: Draw) -> Case:
        variant = draw(st.sampled_from([v for v, (name, _) in activation.VARIANTS.items() if name == op]))
        made = activation.case(variant, shapes(draw), scale=draw(st.sampled_from(scales)))
        fits = {
            "leaky_relu": {"negative_slope": st.floats(-2, 2, width=32)},
            "softplus": {"beta": st.floats(0.25, 4, width=32), "threshold": st.floats(5, 30, width=32)},
            "hardtanh": {"min_val": st.floats(-3, 0, width=32), "max_val": st.floats(0.125, 3, width=32)},
        }
        return dataclasses.replace(made, options=made.options | options(draw, **fits.get(op, {})))

    return case


def _window(draw: Draw, *, dilation: bool) -> dict[str, Any]:
    kernel = pairs(draw, 1, 4)
    found = {"kernel_size": kernel, **options(draw, stride=st.integers(1, 4), ceil_mode=FLAG)}
    if draw(FLAG):
        found["padding"] = tuple(draw(st.integers(0, k // 2)) for k in both(kernel))
    if dilation and draw(FLAG):
        found["dilation"] = pairs(draw, 1, 2)
    return found


def _image(draw: Draw, least: int, channels: st.SearchStrategy = LENGTHS) -> tuple[int, ...]:
    """Batch, channels, and a side that may be long."""
    sides = [draw(st.integers(least, least + 8)), draw(st.one_of(st.integers(least, least + 8), LENGTHS))]
    sides = [max(least, side) for side in (sides if draw(FLAG) else reversed(sides))]
    return (draw(st.integers(1, 3)), min(draw(channels), max(1, 2000 // math.prod(sides))), *sides)


def max_pool(draw: Draw) -> Case:
    window = _window(draw, dilation=True)
    return max_pool2d.case("any", _image(draw, 8), nhwc=draw(FLAG), **window)


def avg_pool(draw: Draw) -> Case:
    window = _window(draw, dilation=False)
    window |= options(draw, count_include_pad=FLAG, divisor_override=st.integers(1, 7))
    return avg_pool2d.case("avg_pool2d", "any", _image(draw, 5), nhwc=draw(FLAG), **window)


def adaptive_avg_pool(draw: Draw) -> Case:
    sizes = draw(st.tuples(st.one_of(st.none(), st.integers(1, 9)), st.integers(1, 9)))
    size = sizes if draw(FLAG) else draw(st.integers(1, 7))
    return avg_pool2d.case("adaptive_avg_pool2d", "any", _image(draw, 1), nhwc=draw(FLAG), output_size=size)


def batch_norms(draw: Draw) -> Case:
    shape = shapes(draw, 2, 4)
    # As for the other norms: two numbers of a channel have the deviations 1 and -1.
    shape = (max(shape[0], 12), max(shape[1], 1), *(max(n, 1) for n in shape[2:]))
    flags = {name: draw(FLAG) for name in ("training", "affine", "running", "residual", "last")}
    activation = draw(st.sampled_from([None, "relu", "silu", "gelu", "elu"]))
    more = options(draw, eps=st.sampled_from([1e-5, 1e-3, 0.5]), momentum=st.floats(0, 1, width=32))
    offset = draw(st.sampled_from([0.0, 0.5, 3.0]))
    return batch_norm.case(shape, offset=offset, activation=activation, **flags, **more)


def _convolution(draw: Draw) -> tuple[tuple[int, ...], int, Any, dict[str, Any]]:
    """Shape of the input, output channels, kernel and options that fit together."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    kernel = pairs(draw, 1, 4)
    stride, padding, dilation = pairs(draw, 1, 3), pairs(draw, 0, 2), pairs(draw, 1, 2)
    least = [(k - 1) * d + 1 for k, d in zip(both(kernel), both(dilation), strict=True)]
    image = _image(draw, max(least), st.sampled_from([1, 2, 3, 4, 5, 16, 17, 33]))
    wide = groups == 8 and draw(FLAG)  # depthwise
    channels = groups * (1 if wide else max(1, image[1] // groups))
    out = groups * draw(st.sampled_from([1, 2] if wide else [1, 2, 3, 7, 8, 17, 33]))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    geometry |= options(draw, activation=st.sampled_from(["relu", "silu", "elu", "gelu", "sigmoid"]))
    return (image[0], channels, *image[2:]), out, kernel, geometry


def conv(draw: Draw) -> Case:
    shape, out, kernel, geometry = _convolution(draw)
    return conv2d.case("any", shape, out, kernel, bias=draw(FLAG), residual=draw(FLAG), **geometry)


def conv_of_rows(draw: Draw) -> Case:
    (images, channels, _, width), out, _, geometry = _convolution(draw)
    stride, padding, dilation = (both(geometry.pop(n))[1] for n in ("stride", "padding", "dilation"))
    kernel = draw(st.integers(1, min(9, (width + 2 * padding - 1) // dilation + 1)))
    geometry |= {"stride": stride, "padding": padding, "dilation": dilation}
    shape, flags = (images, channels, width), {"bias": draw(FLAG), "residual": draw(FLAG)}
    return conv1d.case("any", shape, out, kernel, **flags, **geometry)


def conv_pool(draw: Draw) -> Case:
    shape, out, kernel, geometry = _convolution(draw)
    more = options(draw, pool_stride=st.integers(1, 3), ceil_mode=FLAG)
    sides = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            shape[2:],
            *(both(geometry[name]) for name in ("padding", "dilation")),
            both(kernel),
            both(geometry["stride"]),
            strict=True,
        )
    ]
    pool = min(draw(st.integers(1, 3)), *sides)
    return conv2d_max_pool2d.case(
        "any", shape, out, kernel, pool, bias=draw(FLAG), nhwc=draw(FLAG), **geometry, **more
    )


def class_loss(op: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = shapes(draw, 1, 4)
        at = min(len(shape) - 1, 1)
        shape = (*shape[:at], max(shape[at], 1), *shape[at + 1 :])  # of no classes there is no target
        flags = {"weight": draw(FLAG), "reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
        ignored = draw(st.sampled_from([None, None, 0, 1, -1, 255]))
        if op == "cross_entropy":
            flags |= {"sample_weight": draw(FLAG), "probability_target": draw(FLAG)}
            flags |= options(
                draw, label_smoothing=st.sampled_from([0.1, 0.5]), z_loss=st.sampled_from([0.01, 0.1]),
                return_lse=FLAG, inplace_backward=FLAG,
            )  # fmt: skip
            ignored = None if flags["probability_target"] else ignored
        return loss_case(op, f"{op}_any", shape, ignored=ignored, **flags)

    return case


def linear_cross(draw: Draw) -> Case:
    more = {"label_smoothing": st.just(0.1), "z_loss": st.just(0.1), "chunk_size": st.integers(1, 70)}
    rows = draw(st.one_of(st.none(), LENGTHS))  # torch has no unbatched form with further dimensions
    behind = draw(st.sampled_from([(), (), (3,), (2, 2)])) if rows else ()
    flags = {name: draw(FLAG) for name in ("bias", "weight", "sample_weight")}
    # By chunks the gradient of a mean over weights that are all 0 is 0, where torch's is NaN as the loss is.
    reduction = draw(st.sampled_from(["none", "sum"] if flags["weight"] else ["none", "mean", "sum"]))
    features = draw(st.sampled_from([1, 3, 8, 17, 33]))
    return linear_cross_entropy.case(
        "any", rows, (draw(LENGTHS), *behind), features, reduction=reduction, **flags, **options(draw, **more)
    )


def plain_dropout(draw: Draw) -> Case:
    return dropout.plain_case(shapes(draw), p=draw(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])))


def fused_dropout(draw: Draw) -> Case:
    shape = shapes(draw, 1)
    at = draw(st.integers(0, len(shape) - 1))
    bias = draw(st.sampled_from([None, (1,), (shape[at], *[1] * (len(shape) - 1 - at))]))
    activation, p = draw(st.sampled_from(list(dropout.ACTIVATIONS))), draw(st.sampled_from([0.1, 0.5]))
    return dropout.fused_case(shape, bias, activation, residual=draw(FLAG), p=p)


def lookups(draw: Draw) -> Case:
    rows = draw(LENGTHS)
    more = options(draw, padding_idx=st.integers(-rows, rows - 1), scale_grad_by_freq=FLAG)
    return embedding.case(
        "any", rows, draw(LENGTHS), shapes(draw, 0, 3, 300), hot=draw(st.sampled_from([0.0, 0.5])), **more
    )


def resize(draw: Draw) -> Case:
    spatial = draw(st.sampled_from([1, 2, 2, 2, 3]))
    shape = (draw(FEW), draw(FEW), *(draw(st.integers(1, 9)) for _ in range(spatial)))
    if draw(FLAG):
        wanted = {"size": tuple(draw(st.integers(1, 17)) for _ in range(spatial))}
    else:
        wanted = {"scale_factor": draw(st.sampled_from([1.0, 1.5, 2.0, 3.0, 2.3]))}
    modes = st.sampled_from(["nearest", "nearest-exact"])
    return interpolate.case(shape, last=draw(FLAG) and spatial > 1, mode=draw(modes), **wanted)


#: Long enough: two numbers have the deviations 1 and -1, and a gradient of 0 but for rounding.
ROWS = st.one_of(st.integers(12, 40), st.sampled_from([63, 64, 65, 127, 129]))


def norms(op: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        rest = tuple(draw(st.integers(1, 5)) for _ in range(draw(st.integers(0, 1))))
        affine, mean = draw(FLAG), draw(st.sampled_from([0.0, 0.5, 3.0]))
        if op == "instance_norm":
            return layer_norm.channels((draw(FEW), draw(FEW), *rest, draw(ROWS)), affine, mean=mean)
        more = options(draw, activation=st.sampled_from(["relu", "silu", "gelu"]), eps=st.just(1e-3))
        if op == "group_norm":
            count = draw(FEW)
            return layer_norm.groups((draw(FEW), count * draw(ROWS), *rest), count, affine, mean=mean, **more)
        shape = (draw(FEW), *rest, draw(ROWS))
        return layer_norm.rows(shape, draw(st.integers(1, len(shape) - 1)), affine, mean=mean, **more)

    return case


def linears(draw: Draw) -> Case:
    leading = shapes(draw, 0, 3, 60)
    activation = draw(st.sampled_from([None, *linear.ACTIVATIONS]))
    return linear.case("any", leading, draw(LENGTHS), draw(LENGTHS), bias=draw(FLAG), activation=activation)


def losses(op: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = shapes(draw)
        more: dict[str, Any] = {"reduction": draw(st.sampled_from(["none", "mean", "sum"]))}
        if op != "smooth_l1_loss" and draw(FLAG):
            more["weight"] = True
        if op == loss.BCE and shape and draw(FLAG):
            more["pos_weight"] = shape[-1:]
        extra = {"huber_loss": {"delta": st.floats(0.125, 3, width=32)}}
        extra["smooth_l1_loss"] = {"beta": st.floats(0, 3, width=32)}
        return loss.case(op, "any", shape, **more, **options(draw, **extra.get(op, {})))

    return case


def prelus(draw: Draw) -> Case:
    shape = shapes(draw, 1)
    return prelu.case(shape, (1,) if len(shape) < 2 or draw(FLAG) else (shape[1],))


def softmaxes(op: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = shapes(draw)
        dims = max(len(shape), 1)
        return ops.softmax.case(op, "any", shape, draw(st.integers(-dims, dims - 1)))

    return case


def layers(op: str) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        batch, steps = draw(st.one_of(FEW, st.sampled_from([17, 65]))), draw(st.integers(1, 4))
        sizes = None
        more = {"bidirectional": draw(FLAG), "layers": draw(st.integers(1, 2)), "bias": draw(FLAG)}
        if draw(FLAG):
            sizes = tuple(sorted((draw(st.integers(1, batch)) for _ in range(steps - 1)), reverse=True))
            sizes = (batch, *sizes)
        else:
            more["batch_first"] = draw(FLAG)
        hidden = draw(st.sampled_from([1, 2, 3, 7, 15, 16, 17, 33]))
        return recurrent.case("any", op, steps, batch, draw(FEW), hidden, sizes=sizes, **more)

    return case


_FAMILIES: dict[Callable[[str], Callable[[Draw], Case]], list[str]] = {
    activations: list(activation.FORMULAS),
    class_loss: ["cross_entropy", "nll_loss"],
    norms: ["layer_norm", "group_norm", "instance_norm"],
    losses: list(loss.NAMES),
    softmaxes: ["softmax", "log_softmax"],
    layers: list(recurrent.GATES),
}
_SINGLE: dict[str, Callable[[Draw], Case]] = {
    "max_pool2d": max_pool,
    "avg_pool2d": avg_pool,
    "adaptive_avg_pool2d": adaptive_avg_pool,
    "batch_norm": batch_norms,
    "conv1d": conv_of_rows,
    "conv2d": conv,
    "conv2d_max_pool2d": conv_pool,
    "linear_cross_entropy": linear_cross,
    "dropout": plain_dropout,
    "fused_dropout": fused_dropout,
    "embedding": lookups,
    "interpolate": resize,
    "linear": linears,
    "prelu": prelus,
}


@st.composite
def _seeded(draw: Draw, make: Callable[[Draw], Case]) -> Case:
    """The case that ``make`` draws, with numbers of its own."""
    case = make(draw)
    return dataclasses.replace(case, id=f"{case.id}_{draw(st.integers(0, 999))}")


STRATEGIES: dict[str, st.SearchStrategy[Case]] = {
    op: _seeded(make)
    for op, make in {**_SINGLE, **{op: f(op) for f, names in _FAMILIES.items() for op in names}}.items()
}
