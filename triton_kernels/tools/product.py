"""Matrix products of tiles, in the precision that torch's switches ask for."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyops._library import triton_is_interpreted


class Product(NamedTuple):
    """How a matrix product multiplies, a constant.

    ``precision``: "tf32" or "ieee", for float32; ``interpreted``: Triton's interpreter runs it, which would
    multiply the bits of bfloat16 as integers and knows no PTX.
    """

    precision: str
    interpreted: bool

    @staticmethod
    def of(dtype: torch.dtype, *, tf32: bool) -> "Product":
        """``tf32``: whether float32 may be rounded, as pyops/precision.py says for the op."""
        return Product("tf32" if tf32 and dtype == torch.float32 else "ieee", triton_is_interpreted())


@triton.jit
def round_to_tf32(x, INTERPRETED: tl.constexpr):
    """float32 rounded to 10 bits of mantissa, ties away from zero: tensor cores would cut the rest off."""
    if INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x1000) & 0xFFFFE000
        finite = (bits & 0x7F800000) != 0x7F800000
        return tl.where(finite, rounded, bits).to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def multiply_add(a, b, total, PRODUCT: tl.constexpr):
    """total + a @ b."""
    if PRODUCT.interpreted:  # exact
        a, b = a.to(total.dtype), b.to(total.dtype)
    if PRODUCT.precision == "tf32":
        a, b = round_to_tf32(a, PRODUCT.interpreted), round_to_tf32(b, PRODUCT.interpreted)
    return tl.dot(a, b, total, input_precision=PRODUCT.precision, out_dtype=total.dtype)
