"""Cases of ``cross_entropy``: small, classic, vocabulary-sized, segmentation, every kind of target."""

from __future__ import annotations

import torch

from ..measure.case import FORWARD, FORWARD_BACKWARD, Case, Inputs
from .tools.sizes import sweep
from .tools.traffic import rows_traffic

OP = "cross_entropy"
BOTH = (FORWARD, FORWARD_BACKWARD)
BF16 = torch.bfloat16


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, weight: bool = False):
    def build(device: torch.device) -> Inputs:
        target_shape = shape[:1] + shape[2:]
        built = {
            "input": torch.randn(shape, device=device).to(dtype),
            "target": torch.randint(shape[1], target_shape, device=device),
        }
        if weight:
            built["weight"] = (torch.rand(shape[1], device=device) + 0.5).to(dtype)
        return built

    return build


def probability_inputs(shape: tuple[int, ...]):
    def build(device: torch.device) -> Inputs:
        logits = torch.randn(shape, device=device)
        return {"input": logits, "target": torch.randn(shape, device=device).softmax(1)}

    return build


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, note: str = "", **more) -> Case:
    more.setdefault("inputs", inputs(shape, dtype))
    more.setdefault("traffic", rows_traffic(shape, dtype))
    return Case(OP, f"{list(shape)}{note and ' ' + note}", dtype=dtype, **more)


VOCABULARY = (2048, 32000)
SEGMENTATION = (8, 21, 128, 128)

CASES = [
    case((32, 10), overhead=True, modes=BOTH),
    case((256, 10), modes=BOTH, quick=True),
    case((4096, 1000), modes=BOTH, quick=True),
    case(VOCABULARY, devices=("cpu",), modes=BOTH),
    case(
        VOCABULARY,
        note="inplace_backward",
        pyops_options={"inplace_backward": True},
        refill="input",
        devices=("cpu",),
    ),
    *sweep(lambda k: case((4 * k, 256))),
    case(SEGMENTATION, channels_last=True, quick=True),
    case((4096, 1000), BF16, quick=True),
    case(VOCABULARY, BF16, devices=("cpu",)),
    case(
        (4096, 1000),
        note="label smoothing + weight",
        inputs=inputs((4096, 1000), weight=True),
        options={"label_smoothing": 0.1},
    ),
    case(
        (4096, 1000),
        note="probabilities",
        inputs=probability_inputs((4096, 1000)),
        traffic=rows_traffic((4096, 1000), dense_target=True),
    ),
    *(
        case(shape, dtype, devices=("cuda",), quick=shape[1] == 32000 and dtype == BF16)
        for shape in ((65536, 10), (16384, 32000), (8192, 128256))
        for dtype in (torch.float32, BF16)
    ),
]
