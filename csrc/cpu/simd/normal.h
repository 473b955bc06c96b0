// x P(X <= x), X of the standard normal distribution, for vectors of 16 numbers, where one instruction looks
// 32 numbers up.
//
// log2 P(X <= x) is a polynomial on each of 32 pieces of x, and 2^y is 2^(i/16) from a table times a short
// polynomial: 13 multiplications, where math/normal.h's formula takes 31 and a division. Like there, the
// lower tail loses as much relative accuracy as a rounding of its exponent costs.
#pragma once

#include "cpu/simd/vec.h"
#include "math/normal.h"

namespace pyops::cpu {

#if defined(__AVX512F__)

// Coefficients of u^0, u^1, ... in log2 P(X <= x), where kPieces x = i + u, |u| <= 1/2, by i modulo 32. The
// first are the values at u = 0; the others have the least largest error.
template <int kStorageBytes>
struct NormalPieces;

// Error at most 5e-8 of the value where that is below -1, else 1e-8: the rounding of the first.
template <>
struct NormalPieces<4> {
  static constexpr float kPieces = 1.6875f;  // per unit of x
  static constexpr float kLeast = -13.25f;   // below, the result is 0: it would be subnormal
  static constexpr float kLargest = 5.6f;    // above, it is 1
  static constexpr int kDegree = 5;
  alignas(64) static constexpr float kCoefficients[kDegree + 1][32] = {
      {-1.0f,          -0.467387646f,    -0.18110384f,     -0.0554716215f,   -0.0128758298f, -0.00219957298f,
       -0.0002721044f, -2.41780035e-05f, -1.53602571e-06f, -6.95567053e-08f, -127.642014f,   -116.68325f,
       -106.227966f,   -96.2758408f,     -86.8265152f,     -77.8795776f,     -69.4345398f,   -61.4908257f,
       -54.0477562f,   -47.1045113f,     -40.6600952f,     -34.7132835f,     -29.2625618f,   -24.3060017f,
       -19.8411331f,   -15.8647242f,     -12.3724546f,     -9.35842705f,     -6.81439018f,   -4.72851944f,
       -3.08348227f,   -1.85346508f},
      {0.682135761f,    0.395625055f,    0.191575333f,    0.0729872435f,  0.0207319912f, 0.00423773983f,
       0.000613414915f, 6.25717803e-05f, 4.49344407e-06f, 2.2714984e-07f, 11.2105885f,   10.7069731f,
       10.2036505f,     9.70066166f,     9.19805622f,     8.69590092f,    8.19427299f,   7.69326782f,
       7.19300842f,     6.69364929f,     6.19538784f,     5.69848251f,    5.2032814f,    4.71024752f,
       4.22002268f,     3.73350835f,     3.25200129f,     2.77740979f,    2.312603f,     1.86197793f,
       1.43232822f,     1.03403366f},
      {-0.16126354f,     -0.123709664f,    -0.0799942091f,  -0.0402931236f,   -0.0147103332f, -0.00372637552f,
       -0.000646067609f, -7.68053869e-05f, -6.2935992e-06f, -3.57010322e-07f, -0.251772761f,  -0.251737148f,
       -0.251582116f,    -0.251391441f,    -0.251195848f,   -0.250953257f,    -0.25063166f,   -0.250316709f,
       -0.249896318f,    -0.249378175f,    -0.248766854f,   -0.248059303f,    -0.24710381f,   -0.2458736f,
       -0.244273677f,    -0.242124245f,    -0.239211753f,   -0.235134199f,    -0.229306638f,  -0.220762521f,
       -0.208031654f,    -0.189006656f},
      {0.0109090609f,   0.0139424047f,   0.0145962751f,  0.0112362299f,   0.00581527362f,  0.00194052805f,
       0.00041817344f,  5.93042423e-05f, 5.6346571e-06f, 3.6314546e-07f,  9.81967423e-06f, 4.68284088e-05f,
       5.51156154e-05f, 6.00493295e-05f, 7.4100346e-05f, 8.74076723e-05f, 9.09634618e-05f, 0.000119892757f,
       0.000140823453f, 0.000164808051f, 0.00020599924f, 0.000280301727f, 0.000358810474f, 0.000463035685f,
       0.00061283441f,  0.000821516325f, 0.00113724929f, 0.00160682434f,  0.00233085593f,  0.00344598037f,
       0.00515425205f,  0.00766824093f},
      {0.000846220762f,  0.000560186338f,  -0.00032999515f,  -0.00124828634f,  -0.00126482267f,
       -0.000642668747f, -0.000186438047f, -3.32629788e-05f, -3.82304188e-06f, -2.90983792e-07f,
       -0.000397660333f, -3.68894434e-05f, -5.02067269e-06f, -4.52227796e-05f, -1.1513227e-05f,
       -3.86027921e-07f, -0.000138292642f, -3.71889691e-05f, -8.48169948e-05f, -0.000174437126f,
       -0.00018440657f,  -2.78175739e-05f, 2.02124738e-05f,  1.65438123e-05f,  3.77342767e-05f,
       2.3436789e-05f,   7.6388249e-05f,   0.000118722215f,  0.000220308037f,  0.000338148675f,
       0.000517804932f,  0.000731906563f},
      {-5.39530492e-06f, -0.000119421959f, -0.000216563538f, -0.000111097368f, 9.16657737e-05f,
       0.000125020175f,  5.55678671e-05f,  1.29638756e-05f,  1.813111e-06f,    1.61356994e-07f,
       9.8051838e-05f,   -7.13955087e-05f, 1.85295414e-06f,  1.24029129e-05f,  -2.66347888e-05f,
       1.22893198e-06f,  3.9586932e-05f,   1.23914206e-05f,  2.71403806e-05f,  5.56281011e-05f,
       6.17196129e-05f,  1.5264166e-05f,   2.15159457e-06f,  7.23048925e-06f,  5.55322413e-06f,
       2.09066875e-05f,  1.56484657e-05f,  2.39847668e-05f,  2.05441593e-05f,  3.31928422e-05f,
       5.68409887e-05f,  4.05193387e-05f},
  };
};

// For results that are rounded to 16 bits: error at most 1.3e-5.
template <>
struct NormalPieces<2> {
  static constexpr float kPieces = 1.75f;
  static constexpr float kLeast = -13.25f;
  static constexpr float kLargest = 4.8f;
  static constexpr int kDegree = 3;
  alignas(64) static constexpr float kCoefficients[kDegree + 1][32] = {
      {-1.0f,           -0.481675535f,    -0.195201248f,    -0.063768208f,    -0.0161552317f,
       -0.00308686891f, -0.000437756156f, -4.56926682e-05f, -3.49428683e-06f, -129.651932f,
       -118.989166f,    -108.794601f,     -99.0679855f,     -89.8089905f,     -81.0172729f,
       -72.6924133f,    -64.833931f,      -57.4412537f,     -50.5137138f,     -44.0504913f,
       -38.0506096f,    -32.5128632f,     -27.4357491f,     -22.8173809f,     -18.6553383f,
       -14.9464674f,    -11.6865702f,     -8.86994934f,     -6.48869133f,     -4.53155184f,
       -2.98223257f,    -1.81677604f},
      {0.657768071f,    0.390070289f,    0.195973486f,    0.0790882185f, 0.0244004931f, 0.00556058437f,
       0.000920194143f, 0.000109911365f, 9.45886313e-06f, 10.8969536f,   10.4286222f,   9.96054268f,
       9.49275208f,     9.0252924f,      8.55821514f,     8.09158421f,   7.62547541f,   7.15998507f,
       6.69523287f,     6.23136997f,     5.76859188f,     5.30715275f,   4.84738731f,   4.38974857f,
       3.93485618f,     3.48357797f,     3.03715277f,     2.59738731f,   2.16697168f,   1.74997437f,
       1.35258663f,     0.984104216f},
      {-0.14980039f,     -0.116312005f,    -0.0773444623f,   -0.0411158837f, -0.0163799543f, -0.00468788436f,
       -0.000948309025f, -0.000135528229f, -1.37445704e-05f, -0.234223649f,  -0.23408927f,   -0.233970806f,
       -0.233788043f,    -0.233629823f,    -0.233408287f,    -0.233168364f,  -0.232884094f,  -0.232571781f,
       -0.2321527f,      -0.231678531f,    -0.23107852f,     -0.230323225f,  -0.229387f,     -0.228186101f,
       -0.226621345f,    -0.224534005f,    -0.221709579f,    -0.217790246f,  -0.212222368f,  -0.20415929f,
       -0.192299932f,    -0.174846306f},
      {0.00981331896f,  0.0123933526f,   0.0130986217f,   0.0105074393f,   0.00590302004f,  0.00222561602f,
       0.00056070654f,  9.58063683e-05f, 1.12867647e-05f, 3.6918671e-05f,  4.1878171e-05f,  4.78791917e-05f,
       5.46391493e-05f, 6.35349643e-05f, 7.35242429e-05f, 8.62360539e-05f, 0.000101943711f, 0.000122339494f,
       0.000147191487f, 0.000179592302f, 0.000222418632f, 0.000277503888f, 0.000352563977f, 0.000455938396f,
       0.000599843857f, 0.000804677431f, 0.00110402331f,  0.00154964277f,  0.0022235699f,   0.00325229648f,
       0.00480376137f,  0.00703235902f},
  };
};

// 2^(i/16); 2^f = 1 + f P(f) on |f| <= 1/32: relative error 2e-9, 2e-6 without the first coefficient.
struct SixteenthPowers {
  static constexpr float kRoundMagic = 786432.0f;  // 1.5 * 2^19: adding it rounds to a sixteenth
  alignas(64) static constexpr float kTable[16] = {
      1.0f,        1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
      1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
  static constexpr float kPolynomial[] = {0.0555020981f, 0.240234286f, 0.693147182f};
};

// x 2^y with y <= 0, or x 0 where x < least; NaN stays.
template <int kStorageBytes>
PYOPS_HD Vec<float> times_power_of_two(Vec<float> x, Vec<float> y, float least) {
  using V = Vec<float>;
  using K = SixteenthPowers;
  const V shifted = y + K::kRoundMagic;  // sixteenths in the lowest bits
  const V rounded = shifted - K::kRoundMagic;
  const V f = y - rounded;
  const V power = V::Native(_mm512_permutexvar_ps((__m512i)shifted.v, _mm512_load_ps(K::kTable)));
  V p = kStorageBytes == 2 ? V(K::kPolynomial[1]) : f * K::kPolynomial[0] + K::kPolynomial[1];
  p = p * f + K::kPolynomial[2];
  const V factor = power * (p * f) + power;
  const __mmask16 inside = _mm512_cmp_ps_mask(x.v, V(least).v, _CMP_NLT_UQ);
  // scalef takes the whole part of its exponent. x comes first: the power alone may be subnormal.
  return V::Native(_mm512_mask_scalef_ps((x * 0.0f).v, inside, (x * factor).v, rounded.v));
}

// x P(X <= x).
template <class T, class Storage>
PYOPS_HD Vec<float> times_normal_cdf(Vec<float> x) {
  using V = Vec<float>;
  using K = NormalPieces<sizeof(Storage)>;
  // These keep NaN.
  const V above = V::Native(_mm512_max_ps(V(K::kLeast).v, x.v));
  const V t = V::Native(_mm512_min_ps(V(K::kLargest).v, above.v));
  const V shifted = t * K::kPieces + V(ExpConstants<float>::kRoundMagic);  // the piece in the lowest bits
  const V u = t * K::kPieces - (shifted - ExpConstants<float>::kRoundMagic);
  const auto coefficient = [&](int i) {
    const float* row = K::kCoefficients[i];
    return V(
        V::Native(_mm512_permutex2var_ps(_mm512_load_ps(row), (__m512i)shifted.v, _mm512_load_ps(row + 16))));
  };
  V y = coefficient(K::kDegree);
  PYOPS_UNROLL
  for (int i = K::kDegree - 1; i >= 0; --i) y = y * u + coefficient(i);
  return times_power_of_two<sizeof(Storage)>(x, y, K::kLeast);
}

#endif

}  // namespace pyops::cpu
