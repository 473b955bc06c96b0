"""Errors of the C++ entries: torch's type, the function's name, what was expected and given, no path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import pyops
import pyops.functional as F

_X = torch.ones(300, 300)
_HUGE = 1 << 23  # squared, and times 4 bytes, it is more than a process can address

_CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "class index": (
        lambda: F.cross_entropy(_X, torch.full((300,), 300)),
        IndexError,
        r"cross_entropy: target must be in \[0, 300\) or equal ignore_index \(-100\), got 300",
    ),
    "class index, with a gradient": (
        lambda: F.cross_entropy(_X.clone().requires_grad_(), torch.full((300,), 300)),
        IndexError,
        r"cross_entropy: target must be in \[0, 300\) or equal ignore_index \(-100\), got 300",
    ),
    "class index of nll_loss": (
        lambda: F.nll_loss(_X, torch.full((300,), -7)),
        IndexError,
        r"nll_loss: target must be in \[0, 300\) or equal ignore_index \(-100\), got -7",
    ),
    "class index of linear_cross_entropy": (
        lambda: F.linear_cross_entropy(_X[:4], _X[:10], torch.full((4,), 10)),
        IndexError,
        r"linear_cross_entropy: target must be in \[0, 10\).*, got 10",
    ),
    "embedding index": (
        lambda: F.embedding(torch.full((2000,), 300), _X),
        IndexError,
        "embedding: index 300 is out of range for a weight of 300 rows",
    ),
    "linear's shapes": (
        lambda: F.linear(_X, torch.ones(300, 301)),
        RuntimeError,
        r"linear: input must have shape \(300, 301\), got \(300, 300\)",
    ),
    "linear's dtypes": (
        lambda: F.linear(_X, _X.double()),
        RuntimeError,
        "linear: weight must have dtype Float, got Double",
    ),
    "an op called by itself": (
        lambda: torch.ops.pyops.softmax_forward(_X.t(), 1, False),
        RuntimeError,
        "softmax_forward: input must be contiguous",
    ),
    "no memory": (
        lambda: F.interpolate(torch.ones(1, 1, 40, 40), size=(_HUGE, _HUGE)),
        RuntimeError,
        ".*(can't allocate memory|not enough memory|aoti_torch_empty_strided failed)",
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_cpp_errors_have_torchs_type_and_no_path(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    """They were RuntimeErrors that began with ``operator(), <build path>/cross_entropy.cpp:34``."""
    call, error, message = _CASES[case]
    with pyops.use_backend("cpp"), pytest.raises(error, match=f"^{message}") as caught:
        call()
    assert type(caught.value) is error
    assert "csrc" not in str(caught.value)
    assert "csrc" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_bad_class_index_raises_as_torchs_at_every_size(name: str) -> None:
    for rows in (2, 20000):
        rows_of_ones, target = torch.ones(rows, 10), torch.full((rows,), 10)
        for functional in (torch.nn.functional, F):
            with pytest.raises(IndexError):
                getattr(functional, name)(rows_of_ones, target)


_IMAGES, _KERNELS = torch.ones(4, 8, 32, 32), torch.ones(8, 8, 3, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("conv2d", (None, _KERNELS), TypeError),
        ("conv2d", (_IMAGES[:, :7], _KERNELS), RuntimeError),
        ("conv2d", (_IMAGES, _KERNELS.double()), RuntimeError),
        ("conv2d", (_IMAGES, _KERNELS.long()), RuntimeError),
        ("conv2d", (_IMAGES, _KERNELS[:0]), RuntimeError),
        ("conv2d", (_IMAGES, _KERNELS, None, 0), RuntimeError),
        ("conv2d", (_IMAGES, _KERNELS, None, 1, -1), RuntimeError),
        ("conv2d", (_IMAGES, _KERNELS, None, 2, "same"), RuntimeError),
        ("conv2d", (_IMAGES, _KERNELS, torch.ones(7)), RuntimeError),
        ("linear", (_X, _X, "a"), TypeError),
        ("linear", (_X, _X, torch.ones(299)), RuntimeError),
        ("cross_entropy", (_X, torch.zeros(300).int()), RuntimeError),
        ("cross_entropy", (_X, torch.zeros(300, 1).long()), RuntimeError),
        ("cross_entropy", (_X.long(), torch.zeros(300).long()), RuntimeError),
        ("nll_loss", (_X.to(torch.complex64), torch.zeros(300).long()), RuntimeError),
        ("huber_loss", (_X.long(), _X.long()), RuntimeError),
        ("max_pool2d", (_IMAGES, 0), RuntimeError),
        ("max_pool2d", (_IMAGES, 2, 2, 2), RuntimeError),
        ("embedding", (_X, _X), RuntimeError),
    ],
)
def test_what_torch_refuses_is_refused_as_torch_does(name: str, arguments: tuple, error: type) -> None:
    """Code that catches torch's RuntimeError did not catch our ValueError and TypeError."""
    for functional in (torch.nn.functional, F):
        with pytest.raises(error):
            getattr(functional, name)(*arguments)


def test_linear_takes_a_bias_of_every_row() -> None:
    """As torch's does; it was refused."""
    for bias in (torch.rand(1, 300), torch.rand(300, 300), torch.rand(1), torch.rand(())):
        wanted = torch.nn.functional.linear(_X, _X, bias)
        torch.testing.assert_close(F.linear(_X, _X, bias), wanted)


def test_cross_entropy_takes_one_row_with_a_target_of_one() -> None:
    for functional in (torch.nn.functional, F):
        assert functional.cross_entropy(_X[0], torch.zeros(1).long()).shape == ()


@pytest.mark.parametrize(
    ("words", "error", "call"),
    [
        ("Unknown nonlinearity", ValueError, lambda nn: nn.RNN(3, 4, nonlinearity="garbage")),
        (
            "Unknown nonlinearity",
            RuntimeError,
            lambda nn: nn.RNNCell(3, 4, nonlinearity="garbage")(torch.zeros(2, 3)),
        ),
        ("proj_size argument is only supported for LSTM", ValueError, lambda nn: nn.RNN(3, 4, proj_size=2)),
        ("proj_size argument is only supported for LSTM", ValueError, lambda nn: nn.GRU(3, 4, proj_size=2)),
        (
            r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d, .* size: \[1, 9, 9, 9, 9\]",
            RuntimeError,
            lambda nn: nn.functional.conv2d(torch.zeros(1, 9, 9, 9, 9), torch.zeros(6, 1, 5, 5)),
        ),
        (
            r"Expected hx\[0\] to be 1D or 2D, got 4D instead",
            ValueError,
            lambda nn: nn.LSTMCell(3, 4)(torch.zeros(2, 3), (torch.zeros(1, 1, 2, 4),) * 2),
        ),
        (
            "Expected hidden to be 1D or 2D, got 4D instead",
            ValueError,
            lambda nn: nn.GRUCell(3, 4)(torch.zeros(2, 3), torch.zeros(1, 1, 2, 4)),
        ),
        (
            "input has inconsistent input_size: got 5 expected 3",
            RuntimeError,
            lambda nn: nn.GRUCell(3, 4)(torch.zeros(2, 5), torch.zeros(2, 4)),
        ),
        (
            "must be equal to input_size. Expected 3, got 5",
            RuntimeError,
            lambda nn: nn.LSTM(3, 4)(torch.zeros(2, 1, 5)),
        ),
        (
            "hidden1 has inconsistent hidden_size: got 5, expected 4",
            RuntimeError,
            lambda nn: nn.LSTMCell(3, 4)(torch.zeros(2, 3), (torch.zeros(2, 4), torch.zeros(2, 5))),
        ),
        (
            r"Expected input batch_size .* to match target batch_size",
            ValueError,
            lambda nn: nn.functional.cross_entropy(_X, torch.zeros(7).long()),
        ),
        (
            "expected target dtype to be Long or Byte",
            RuntimeError,
            lambda nn: nn.functional.cross_entropy(_X, torch.zeros(300).int()),
        ),
        (
            "RNN input dtype .* does not match weight dtype .* Convert input: .*, or convert model: ",
            ValueError,
            lambda nn: nn.LSTM(3, 4)(torch.zeros(2, 1, 3).double()),
        ),
        (
            "Expected floating point type for target with class probabilities",
            RuntimeError,
            lambda nn: nn.functional.cross_entropy(_X, _X.long()),
        ),
        (
            r"Expected hidden.*size.*got",
            RuntimeError,
            lambda nn: nn.LSTM(3, 4)(torch.zeros(2, 1, 3), (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5))),
        ),
        (
            "not implemented for",
            RuntimeError,
            lambda nn: nn.functional.interpolate(_IMAGES.short(), scale_factor=2),
        ),
        (
            "expected size to be one of int or",
            TypeError,
            lambda nn: nn.functional.interpolate(_IMAGES, size=(1.5, 2.0)),
        ),
        (
            r"label_smoothing must be between 0\.0",
            RuntimeError,
            lambda nn: nn.functional.cross_entropy(_X, torch.zeros(300).long(), label_smoothing=1.2),
        ),
        (
            "Expected grad_output to have non-zero size",
            RuntimeError,
            lambda nn: (
                nn.functional.adaptive_avg_pool2d(_IMAGES.double().requires_grad_(), 0).sum().backward()
            ),
        ),
    ],
)
def test_errors_have_torchs_words(words: str, error: type, call: Callable) -> None:
    """Suites that look for them in the message did not find them; two of them were no errors at all."""
    for nn in (torch.nn, pyops.nn):
        with pytest.raises(error, match=words):
            call(nn)


def test_batch_norm_takes_an_empty_batch_of_another_dtype() -> None:
    x = torch.zeros(0, 3, 2, 2, dtype=torch.float64)
    for nn in (torch.nn, pyops.nn):
        assert nn.BatchNorm2d(3)(x).shape == x.shape


def test_linear_without_dropout_does_not_look_at_its_mode() -> None:
    """A module without ``training``, as torch's test of modules makes it, raised."""
    layer = pyops.nn.Linear(3, 4)
    del layer.training
    assert layer(torch.zeros(2, 3)).shape == (2, 4)


def test_shape_functions_met_none_where_a_tensor_is_required() -> None:
    """torch lets it through: an AttributeError said that None has no size."""
    for name, (schema, fake) in pyops._library._SCHEMAS.items():
        count = schema[: schema.index(") ->")].count(",") + 1
        with pytest.raises(TypeError, match=f"{name}: .* must be a Tensor, got None"):
            fake(*[None] * count)
