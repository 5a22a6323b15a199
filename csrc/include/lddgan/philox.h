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

// u = (word + 1/2) / 2^32 = 2^exponent (1 + f), f in [-1/2, 0]. Where u > 1/2, what is known
// exactly is 1 - u: there f is minus that and the exponent 0, so that log u keeps its digits next
// to u = 1.
template <typename Math>
LDDGAN_SHARED void split(typename Math::U word, typename Math::F& f, typename Math::F& exponent) {
  using I = typename Math::I;
  I sign = I(word) >> 31;
  typename Math::F twice = Math::to_float(I(word) ^ sign) * 0x1p-31f + 0x1p-32f;
  I bits = Math::bits(twice);
  f = Math::select(sign != 0, twice * -0.5f,
                   Math::from_bits((bits & 0x7fffff) | 0x3f000000) - 1.0f);
  exponent = Math::to_float(((bits >> 23) - 127) & ~sign);
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
  LDDGAN_SHARED F select_bit(U word, uint32_t bit, F yes, F no) { return word & bit ? yes : no; }
  // x >= 0 with the highest bit of `sign`.
  LDDGAN_SHARED F with_sign(F x, U sign) { return from_bits(bits(x) | I(sign & 0x80000000u)); }
  LDDGAN_SHARED void split(U word, F& f, F& exponent) {
    lddgan::split<ScalarMath>(word, f, exponent);
  }
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

  F f, exponent;
  Math::split(radius_word, f, exponent);
  // Minimax polynomial of -2 log(1 + f) / f, relative error 1.5e-7.
  F p = f * 2.36163163f + 2.14767051f;
  p = p * f + 1.55932653f;
  p = p * f - 0.080431506f;
  p = p * f + 0.54360491f;
  p = p * f - 0.663818896f;
  p = p * f + 1.00006878f;
  p = p * f - 1.99999976f;
  F radius = Math::sqrt(p * f + exponent * -1.3862943611f);

  // The angle is a quadrant and y in [-1/2, 1/2) of a right angle, split exactly in integers.
  F y = Math::to_float(I(angle_word << 2)) * 0x1p-32f;
  F y2 = y * y;
  F s = y2 * -0.00459597912f + 0.0796831846f;
  s = s * y2 - 0.645964622f;
  s = (s * y2 + 1.57079637f) * y;
  F c = y2 * -0.020427959f + 0.253607005f;
  c = c * y2 - 1.23369801f;
  c = c * y2 + 1.0f;
  // Quadrants 1 and 3 swap sine and cosine; 2 and 3 negate the sine, 1 and 2 the cosine.
  U quadrant = angle_word + (1u << 29);
  F sine_radius = Math::with_sign(radius, quadrant);
  F cosine_radius = Math::with_sign(radius, angle_word + (3u << 29));
  first = cosine_radius * Math::select_bit(quadrant, 1u << 30, s, c);
  second = sine_radius * Math::select_bit(quadrant, 1u << 30, c, s);
}

}  // namespace lddgan
