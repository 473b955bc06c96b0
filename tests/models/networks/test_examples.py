"""The examples of the notes that are no networks."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from pyops.models.errors import TrainError
from pyops.models.examples import covariate_shift, himmelblau
from typer.testing import CliRunner

from pyops import cli


def test_minima_of_himmelblau():
    points = torch.tensor(himmelblau.MINIMA, dtype=torch.float64, requires_grad=True)
    values = himmelblau.himmelblau(points)
    (gradient,) = torch.autograd.grad(values.sum(), points)
    assert values.max() < 1e-9
    assert gradient.abs().max() < 1e-4
    assert himmelblau.himmelblau(torch.tensor([1.0, 2.0])).item() == (1 + 2 - 11) ** 2 + (1 + 4 - 7) ** 2


def test_descents_find_all_minima():
    found = [himmelblau.descend(start) for start in himmelblau.STARTS]
    assert all(descent.value < 1e-8 for descent in found)
    ends = torch.stack([descent.path[-1] for descent in found])
    distances = torch.cdist(ends, torch.tensor(himmelblau.MINIMA, dtype=torch.float64))
    assert sorted(distances.argmin(1).tolist()) == [0, 1, 2, 3]
    assert distances.min(1).values.max() < 1e-4


def test_divergence_is_said():
    with pytest.raises(TrainError, match="himmelblau became"):
        himmelblau.descend((1e200, 0.0))


def test_weights_are_the_ratio_of_the_densities():
    """Normal densities of the same variance, centred at -1 and 1: q / p = exp(2 x)."""
    data = covariate_shift.shifted_data()
    weights = covariate_shift.importance_weights(data.train_inputs, data.test_inputs)
    expected = (2 * data.train_inputs[:, 0]).exp().clamp(max=20.0)
    common = data.train_inputs[:, 0].abs() < 1
    assert (weights / expected)[common].log().abs().mean() < 0.15
    # A weighted mean over the training inputs is one over the test inputs, but for the weights that are cut.
    mean = (weights.unsqueeze(1) * data.train_inputs).sum(0) / weights.sum()
    torch.testing.assert_close(mean, data.test_inputs.mean(0), atol=0.4, rtol=0)
    assert (data.train_inputs.mean(0) - data.test_inputs.mean(0)).abs().max() > 1.8


def test_weights_make_up_for_the_shift():
    data = covariate_shift.shifted_data(seed=3)
    weights = covariate_shift.importance_weights(data.train_inputs, data.test_inputs)
    scores = [
        covariate_shift.accuracy(
            covariate_shift.fit(data.train_inputs, data.train_labels, given),
            data.test_inputs,
            data.test_labels,
        )
        for given in (None, weights)
    ]
    assert scores[1] > scores[0] + 0.1
    assert scores[1] > 0.85


@pytest.mark.parametrize(
    ("name", "words"), [("himmelblau", "f ="), ("covariate_shift", "importance weights")]
)
def test_example_command(tmp_path, name, words):
    result = CliRunner().invoke(cli.app, ["example", name, "--output", str(tmp_path)])
    assert result.exit_code == 0
    assert words in result.stdout
    with Image.open(tmp_path / f"{name}.png") as image:
        assert len(image.convert("RGB").getcolors(2**20)) > 100


def test_unknown_example(tmp_path):
    result = CliRunner().invoke(cli.app, ["example", "himmelbau", "--output", str(tmp_path)])
    assert "did you mean 'himmelblau'" in str(result.exception)
