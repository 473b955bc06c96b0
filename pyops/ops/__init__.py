"""The ops: one module each, with schema, fake kernel, autograd and public function."""

from . import cross_entropy, elementwise_loss, gemm, linear_cross_entropy, loss, nll_loss, softmax

__all__ = ["cross_entropy", "elementwise_loss", "gemm", "linear_cross_entropy", "loss", "nll_loss", "softmax"]
