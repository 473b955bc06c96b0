"""The random numbers of csrc/common/philox.h: one evaluation of Philox serves eight neighbouring elements."""

import triton
import triton.language as tl

GROUP: tl.constexpr = tl.constexpr(8)


@triton.jit
def _philox(seed_ptr, block):
    """The four words of Philox blocks ``block``, int64: Philox4x32-10 (csrc/common/philox.h)."""
    key = tl.load(seed_ptr).to(tl.uint64, bitcast=True)
    stream = tl.load(seed_ptr + 1).to(tl.uint64, bitcast=True)
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    number = block.to(tl.uint64, bitcast=True)
    c0, c1 = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + stream.to(tl.uint32)
    c3 = tl.zeros_like(c0) + (stream >> 32).to(tl.uint32)
    return tl.philox_impl(c0, c1, c2, c3, k0, k1, n_rounds=10)


@triton.jit
def _is_low_half_above(w0, w1, w2, w3, threshold):
    """1 where the low half of a block's draws is not below the threshold's, otherwise 0."""
    words = w0 ^ w1 ^ w2 ^ w3
    low = (words ^ (words >> 16)) & 0xFFFF
    return tl.where(low < tl.full([], threshold & 0xFFFF, tl.uint32), 0, 1).to(tl.uint32)


@triton.jit
def group_is_below(seed_ptr, group, threshold, SHAPE: tl.constexpr):
    """Whether the 32-bit draws of the elements of ``group`` [..., G] are below ``threshold``, as [..., 8 G]:
    ``SHAPE``.

    Element 4 i + 2 j + k of a group has half k of word 2 i + j. A join makes its operands neighbours.
    """
    w0, w1, w2, w3 = _philox(seed_ptr, group)
    one = _is_low_half_above(w0, w1, w2, w3, threshold)
    even = tl.join(
        tl.join((w0 & 0xFFFF) + one, (w2 & 0xFFFF) + one), tl.join((w1 & 0xFFFF) + one, (w3 & 0xFFFF) + one)
    )
    odd = tl.join(tl.join((w0 >> 16) + one, (w2 >> 16) + one), tl.join((w1 >> 16) + one, (w3 >> 16) + one))
    return tl.reshape(tl.join(even, odd), SHAPE) <= tl.full([], threshold >> 16, tl.uint32)


@triton.jit
def element_is_below(seed_ptr, element, threshold):
    """The same for single elements anywhere."""
    w0, w1, w2, w3 = _philox(seed_ptr, element // GROUP)
    slot = (element % GROUP).to(tl.int32)
    word = tl.where(slot < 4, tl.where(slot < 2, w0, w1), tl.where(slot < 6, w2, w3))
    high = tl.where(slot % 2 == 1, word >> 16, word & 0xFFFF)
    return high + _is_low_half_above(w0, w1, w2, w3, threshold) <= tl.full([], threshold >> 16, tl.uint32)
