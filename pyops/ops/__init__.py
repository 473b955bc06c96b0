"""The ops: one module each, with schema, fake kernel, autograd and public function."""

from . import cross_entropy, gemm, linear, linear_cross_entropy, nll_loss, softmax

__all__ = ["cross_entropy", "gemm", "linear", "linear_cross_entropy", "nll_loss", "softmax"]
