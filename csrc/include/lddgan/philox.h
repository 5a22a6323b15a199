// Normal noise by counter: Philox4x32-10 and Box-Muller, for the CPU kernels and CUDA alike.
//
// The definition is in lddgan_kernels/ops/_philox.py. Everything is a template over `Math`, a
// struct of a float type F, integer types I and U of its width, and the few operations that scalars
// and vectors spell differently; ScalarMath is here, the vectors' in normal.h.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LDDGAN_SHARED static __host__ __device__ __forceinline__
#else
// static and always inline: compiled for several instruction sets (see isa.h).
#define LDDGAN_SHARED static inline __attribute__((always_inline))
#endif

namespace lddgan {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// Four words of one counter; `words` holds the counter and then the result.
LDDGAN_SHARED void philox4x32(uint32_t (&words)[4], uint32_t key0, uint32_t key1) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    uint64_t first = uint64_t(kPhiloxMultiplier0) * words[0];
    uint64_t second = uint64_t(kPhiloxMultiplier1) * words[2];
    words[0] = uint32_t(second >> 32) ^ words[1] ^ key0;
    words[1] = uint32_t(second);
    words[2] = uint32_t(first >> 32) ^ words[3] ^ key1;
    words[3] = uint32_t(first);
    key0 += kPhiloxKeyStep0;
    key1 += kPhiloxKeyStep1;
  }
}

struct ScalarMath {
  using F = float;
  using I = int32_t;
  using U = uint32_t;

  LDDGAN_SHARED F to_float(I x) { return float(x); }
  LDDGAN_SHARED I bits(F x) {
    I value;
    std::memcpy(&value, &x, 4);
    return value;
  }
  LDDGAN_SHARED F from_bits(I x) {
    F value;
    std::memcpy(&value, &x, 4);
    return value;
  }
  LDDGAN_SHARED F select(bool mask, F yes, F no) { return mask ? yes : no; }
  LDDGAN_SHARED F sqrt(F x) {
#if defined(__CUDA_ARCH__)
    // One Newton step on the fast reciprocal root; x is never 0 here.
    F y = rsqrtf(x), root = x * y;
    return fmaf(fmaf(-root, root, x), 0.5f * y, root);
#else
    return __builtin_sqrtf(x);
#endif
  }
};

// Two standard normals of two words: sqrt(-2 log u) (cos 2 pi v, sin 2 pi v) with
// u = (radius_word + 1/2) / 2^32, v = angle_word / 2^32; absolute error below 1e-6.
template <typename Math>
LDDGAN_SHARED void box_muller(typename Math::U radius_word, typename Math::U angle_word,
                              typename Math::F& first, typename Math::F& second) {
  using F = typename Math::F;
  using I = typename Math::I;
  using U = typename Math::U;

  // -2 log u = exponent * (-2 log 2) - 2 log(1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). Where
  // u > 1/2, a = 1 - u is what is known exactly, and next to 1 the logarithm is taken of it: f =
  // -a.
  I word = I(radius_word);
  I sign = word >> 31;
  F a = Math::to_float(word ^ sign) * 0x1p-32f + 0x1p-33f;
  F u = Math::select(sign != 0, 1.0f - a, a);
  I offset = Math::bits(u) - 0x3f3504f3;  // the bits of sqrt(1/2)
  I exponent = offset >> 23;
  F f = Math::select(exponent == 0, -a, Math::from_bits(Math::bits(u) - (exponent << 23)) - 1.0f);
  // Minimax polynomial of -2 log(1 + f) / f, relative error 3e-8.
  F p = f * -0.1744469851f + 0.2873367965f;
  p = p * f - 0.2990453541f;
  p = p * f + 0.3312478662f;
  p = p * f - 0.3991366625f;
  p = p * f + 0.5000414848f;
  p = p * f - 0.6666837335f;
  p = p * f + 0.9999997616f;
  p = p * f - 2.0f;
  F radius = Math::sqrt(Math::to_float(exponent) * -1.3862943611f + p * f);

  // The angle is a quadrant and y in [-1/2, 1/2) of a right angle, split exactly in integers.
  F y = Math::to_float(I(angle_word << 2)) * 0x1p-32f;
  F y2 = y * y;
  F s = y2 * -0.00460165786f + 0.0796800330f;
  s = s * y2 - 0.645963490f;
  s = (s * y2 + 1.57079637f) * y;
  F c = y2 * 0.000904021668f - 0.0208602883f;
  c = c * y2 + 0.253669232f;
  c = c * y2 - 1.23370051f;
  c = c * y2 + 1.0f;
  // Quadrant bits: the low one swaps sine and cosine, the high one negates the sine, and their
  // exclusive or the cosine.
  U quadrant = angle_word + (1u << 29);
  auto odd = I(quadrant << 1) < 0;
  U sine_sign = quadrant & 0x80000000u;
  U cosine_sign = (quadrant ^ (quadrant << 1)) & 0x80000000u;
  first = radius * Math::from_bits(Math::bits(Math::select(odd, s, c)) ^ I(cosine_sign));
  second = radius * Math::from_bits(Math::bits(Math::select(odd, c, s)) ^ I(sine_sign));
}

}  // namespace lddgan
