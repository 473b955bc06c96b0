"""What softmax and cross-entropy compute of a row, as in csrc/math/softmax.h."""

import triton
import triton.language as tl

from ..tools.math import INFINITY


@triton.jit
def shift_of(maximum):
    """What to subtract before exp: never -inf, because -inf - -inf is NaN."""
    return tl.where(maximum == -INFINITY, 0.0, maximum)


@triton.jit
def finish_log_sum(maximum, total):
    """log(total); NaN for a row of only -inf, which has no distribution."""
    return tl.where(maximum == -INFINITY, float("nan"), tl.log(total))


@triton.jit
def log_probability(x, maximum, log_sum):
    """Maximum and log-sum stay apart so that a large common offset of the logits rounds nothing away."""
    return (x - maximum) - log_sum
