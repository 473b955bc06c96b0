"""``pyops generate``: text that a trained language model continues a prompt with."""

from __future__ import annotations

from pathlib import Path

import torch

from ..data.text import decoded
from ..errors import DataError, NetworkError
from ..networks.language_model import LanguageModel
from ..registry import get_network
from ..training.finished_run import read_run


def generate(
    run_folder: str | Path, prompt: str, *, length: int = 300, temperature: float = 1.0, seed: int = 0
) -> str:
    """``length`` characters that the model of a finished run draws, one by one, to continue ``prompt``.

    Args:
        temperature: below 1, likely characters become likelier; above, the text is wilder.
        seed: of the drawing: the same seed gives the same text.

    Raises:
        ModelsError: no such run, not of a language model, an empty prompt, or one with characters that are
            not in the text that the model was trained on.
    """
    run = read_run(run_folder)
    if not get_network(run.metrics["network"]).task.reads_text:
        raise NetworkError(f"{run.folder} is a run of {run.title}, which does not write text")
    if not prompt:
        raise DataError("the prompt is empty: begin the text")
    if temperature <= 0:
        raise DataError(f"temperature must be above 0, got {temperature:g}")
    names = run.metrics["class_names"]
    unknown = sorted(set(prompt) - set(names))
    if unknown:
        raise DataError(f"the prompt has characters that the model has never read: {' '.join(unknown)}")
    net = run.load_network()
    assert isinstance(net, LanguageModel)
    tokens = torch.tensor([names.index(character) for character in prompt])
    generator = torch.Generator().manual_seed(seed)
    return decoded(net.continued(tokens, length, generator, temperature), names)
