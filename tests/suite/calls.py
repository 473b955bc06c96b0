"""One small case of every public function as a call that can be repeated, on other streams and by a graph."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from . import checks, ops
from .cases import Case

Results = dict[str, Tensor]


def smallest_case(module: ModuleType, function: str) -> Case:
    """The first quick case of a public function in the contract of its file."""
    sweeps = [s for check in ("accuracy", "gradcheck") for s in module.CONTRACT.sweeps(check)]
    cases = [*module.CONTRACT.small, *(case for sweep in sweeps for case in sweep.cases)]
    return next(case for case in cases if case.op == function and case.quick)


def one_case_per_function() -> Iterator[Case]:
    for module in ops.MODULES:
        for function in getattr(module, "OPS", {}):
            yield smallest_case(module, function)


def storage_of(t: Tensor) -> Tensor:
    """All elements of the tensor's memory, in order, whatever its strides."""
    return torch.as_strided(t, (t.untyped_storage().size() // t.element_size(),), (1,), 0)


class Call:
    """A case that runs forward and backward on tensors whose contents may change between runs.

    Nothing comes from the host, so that a graph can hold it.
    """

    def __init__(self, case: Case, device: str, dtype: torch.dtype = torch.float32) -> None:
        self.case, self.op = case, checks.OPS[case.op]
        self.tensors = checks.on_device(case.tensors(dtype), device)
        outputs = checks._outputs(self.op.pyops(**self.tensors, **case.options))
        upstream = checks.upstream_of(case, outputs)
        self.upstream = [g.to(o.dtype).to(device) for o, g in zip(outputs, upstream, strict=True)]

    def inputs(self) -> dict[str, Tensor]:
        """The tensors whose contents may change: those of class indices and sizes may not."""
        return {k: t for k, t in self.tensors.items() if t.is_floating_point()}

    def fill(self, source: dict[str, Tensor]) -> None:
        for name, t in self.inputs().items():
            storage_of(t).copy_(storage_of(source[name]))

    def __call__(self) -> Results:
        leaves = {
            k: t.detach().requires_grad_(t.is_floating_point() and k in self.op.differentiable)
            for k, t in self.tensors.items()
        }
        inputs = leaves
        if self.case.options.get("inplace_backward"):
            inputs = {**leaves, "input": leaves["input"].clone(memory_format=torch.preserve_format)}
        outputs = checks._outputs(self.op.pyops(**inputs, **self.case.options))
        wanted = {k: t for k, t in leaves.items() if t.requires_grad}
        gradients = torch.autograd.grad(outputs, list(wanted.values()), self.upstream)
        results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
        return {**results, **{f"gradient of {k}": g for k, g in zip(wanted, gradients, strict=True)}}
