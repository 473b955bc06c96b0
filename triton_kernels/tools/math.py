"""Elementary functions that Triton has not, or not accurately: the formulas of csrc/cpu/simd/math.h and
csrc/math/normal.h.

Arguments are float32 or float64 tensors. ``storage`` is the dtype that results are stored as, which may allow
a faster exp (:func:`exp`).
"""

import triton
import triton.language as tl

INFINITY: tl.constexpr = tl.constexpr(float("inf"))
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950216293335)  # float32 nearest to log2(e) ...
_LOG2_E_REST: tl.constexpr = tl.constexpr(1.9259629911266175e-08)  # ... and what is missing
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def exp(x, storage: tl.constexpr):
    """exp(x), accurate enough for results stored as ``storage``.

    For 16-bit results and float64, ``tl.exp`` is. In float32 it is exp2(x * log2 e), whose rounded
    product costs up to |x| ulp; here the product's rounding error is carried along.
    """
    if storage == tl.float32:
        # Outside these bounds exp is 0 or infinity, and products with infinity would give NaN.
        x = tl.clamp(x, -104.0, 89.0, propagate_nan=tl.PropagateNan.ALL)
        product = x * _LOG2_E
        rest = tl.fma(x, _LOG2_E, -product) + x * _LOG2_E_REST
        return tl.exp2(product) * (1.0 + rest * _LN_2)
    else:
        return tl.exp(x)


@triton.jit
def divide(x, y):
    """x / y, correctly rounded (Triton's float32 ``/`` is not)."""
    if y.dtype.scalar == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


# exp(r) = 1 + r + r^2 P(r), |r| <= log(2) / 2; highest power first.
_EXP_32: tl.constexpr = tl.constexpr(
    (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_EXP_64: tl.constexpr = tl.constexpr(
    (1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320, 1 / 5040, 1 / 720,
     1 / 120, 1 / 24, 1 / 6, 1 / 2)
)  # fmt: skip
# log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + s^2 P(s^2)), s = f / (2 + f).
_LOG_32: tl.constexpr = tl.constexpr((0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693))
_LOG_64: tl.constexpr = tl.constexpr(
    (1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
     2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01)
)  # fmt: skip
# (1 + 2 t) exp(t^2) erfc(t) as a polynomial of (t - K) / (t + K), K = 2 and 3.
_ERFC_32: tl.constexpr = tl.constexpr(
    (1.3261175e-5, -0.000391060979, -0.00125499963, 0.00129642471, 0.00864618511, -0.00805136593,
     -0.0542076967, 0.164053926, -0.16603113, -0.0927639223, 1.27697839)
)  # fmt: skip
_ERFC_64: tl.constexpr = tl.constexpr(
    (-4.152865388901344e-09, -8.3612181608824266e-09, 3.2825163006176683e-08, 9.1423199313184733e-08,
     -1.3116132294448009e-07, -6.0441248819344101e-07, 3.4920430828377254e-07, 3.4635525785808633e-06,
     -7.2780443966720484e-07, -2.0096426869541815e-05, 4.9482622997916771e-06, 0.00012509809287280239,
     -0.00010515952561216177, -0.00077983202731480141, 0.0018886903184454165, 0.0025293917871075681,
     -0.02377051491489925, 0.068308027345875363, -0.11927366341549393, 0.12964515870270349,
     -0.047562294353447068, -0.13562110612458067, 1.2530080582697296)
)  # fmt: skip


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, COUNT: tl.constexpr):
    """The first coefficient belongs to the highest power."""
    y = tl.zeros_like(x) + COEFFICIENTS[0]
    for k in tl.static_range(1, COUNT):
        y = y * x + COEFFICIENTS[k]
    return y


@triton.jit
def _exp_parts(x):
    """x = n log(2) + r: 2^n / 2 (2^n may overflow where the result does not) and exp(r) - 1."""
    if x.dtype.scalar == tl.float64:
        bounded = tl.where(x < -45.0, -45.0, tl.where(x > 710.0, 710.0, x))
        n = tl.floor(bounded * 1.4426950408889634074 + 0.5)
        r = (bounded - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6
        fraction = _polynomial(r, _EXP_64, 12) * (r * r) + r
        half_power = ((tl.where(n == n, n, 0.0).to(tl.int64) + 1022) << 52).to(tl.float64, bitcast=True)
    else:
        bounded = tl.where(x < -20.0, -20.0, tl.where(x > 89.0, 89.0, x))
        n = tl.floor(bounded * 1.44269504088896341 + 0.5)
        r = (bounded - n * 0.693359375) + n * 2.12194440e-4
        fraction = _polynomial(r, _EXP_32, 6) * (r * r) + r
        half_power = ((tl.where(n == n, n, 0.0).to(tl.int32) + 126) << 23).to(tl.float32, bitcast=True)
    return half_power, fraction


@triton.jit
def expm1(x):
    """exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1)."""
    half_power, fraction = _exp_parts(x)
    half = fraction * half_power + (half_power - 0.5)
    return half + half


@triton.jit
def tanh(x):
    """With e = exp(-2 |x|): (1 - e) / (1 + e), or for larger |x| 1 - 2 e / (1 + e), which rounds once."""
    half_power, fraction = _exp_parts(tl.abs(x) * -2.0)
    scaled = fraction * half_power
    half_e = scaled + half_power
    small = half_e > 0.125
    quotient = divide(tl.where(small, (0.5 - half_power) - scaled, half_e + half_e), half_e + 0.5)
    y = tl.where(small, quotient, 1.0 - quotient)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def log1p(x):
    """log(1 + x) = log(u) + (x - (u - 1)) / u with u = 1 + x rounded."""
    u = x + 1.0
    lost = tl.where(x > 1.0, 1.0 - (u - x), x - (u - 1.0))
    normal = (u > 0.0) & (u < INFINITY)
    safe = tl.where(normal, u, 1.0)
    correction = divide(lost, safe)
    if x.dtype.scalar == tl.float64:
        bits = safe.to(tl.int64, bitcast=True)
        exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
        m = (bits - (exponent << 52)).to(tl.float64, bitcast=True)
        n = exponent.to(tl.float64)
        high, low = n * 6.93147180369123816490e-01, n * 1.90821492927058770002e-10
    else:
        bits = safe.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
        n = exponent.to(tl.float32)
        high, low = n * 6.9313812256e-01, n * 9.0580006145e-06
    f = m - 1.0
    s = divide(f, f + 2.0)
    z = s * s
    if x.dtype.scalar == tl.float64:  # noqa: SIM108 (a statement compiles one branch only)
        p = _polynomial(z, _LOG_64, 7)
    else:
        p = _polynomial(z, _LOG_32, 4)
    half_square = f * f * 0.5
    small = s * (half_square + p * z) + (low + correction)
    y = high - ((half_square - small) - f)
    # 0 gives -inf, infinity itself, NaN and what is below -1 NaN.
    return tl.where(normal, y, tl.where(u == 0.0, -INFINITY, tl.where(u > 0.0, u, float("nan"))))


@triton.jit
def logistic(x, storage: tl.constexpr):
    return divide(1.0, exp(-x, storage) + 1.0)


@triton.jit
def normal_distribution(x, storage: tl.constexpr):
    """P(X <= x) for a standard normal X, and exp(-x^2 / 2)."""
    exponential = exp(x * x * -0.5, storage)
    t = tl.abs(x) * 0.70710678118654752440
    if x.dtype.scalar == tl.float64:
        t = tl.where(t > 27.0, 27.0, t)
        shifted = t + 3.0
        slope = t * 2.0 + 1.0
        inverse = divide(1.0, shifted * slope)
        p = _polynomial((t - 3.0) * (slope * inverse), _ERFC_64, 23)
    else:
        t = tl.where(t > 9.5, 9.5, t)
        shifted = t + 2.0
        slope = t * 2.0 + 1.0
        inverse = divide(1.0, shifted * slope)
        p = _polynomial((t - 2.0) * (slope * inverse), _ERFC_32, 11)
    tail = (exponential * 0.5) * (p * (shifted * inverse))
    return tl.where(x > 0.0, 1.0 - tail, tail), exponential
