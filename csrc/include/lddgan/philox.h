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

// u = (word + 1/2) / 2^32 = 2^exponent (1 + f), f in [-1/2, 0], and offset = -2 log 2^exponent.
// Where u > 1/2, that is where the word is negative as an integer, u - 1 is what is known exactly:
// there it is f and the exponent 0, so that log u keeps its digits next to u = 1.
template <typename Math>
LDDGAN_SHARED void split(typename Math::U word, typename Math::F& f, typename Math::F& offset) {
  using I = typename Math::I;
  I sign = I(word) >> 31;
  typename Math::F u = Math::to_float(I(word)) * 0x1p-32f + 0x1p-33f;
  I bits = Math::bits(u);
  f = Math::select(sign != 0, u, Math::from_bits((bits & 0x7fffff) | 0x3f000000) - 1.0f);
  offset = Math::to_float(((bits >> 23) - 126) & ~sign) * -1.3862943611f;
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
  // A quarter turn of (cosine, sine) where bit 30 of `quadrant` is set.
  LDDGAN_SHARED void turn(U quadrant, F& cosine, F& sine) {
    F c = cosine, s = sine;
    bool odd = quadrant & (1u << 30);
    cosine = odd ? -s : c;
    sine = odd ? c : s;
  }
  // x >= 0 with the highest bit of `sign`.
  LDDGAN_SHARED F with_sign(F x, U sign) { return from_bits(bits(x) | I(sign & 0x80000000u)); }
  LDDGAN_SHARED void split(U word, F& f, F& offset) { lddgan::split<ScalarMath>(word, f, offset); }
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

  // Two chains of operations side by side. The logarithm's is a minimax polynomial of
  // -2 log(1 + f) / f, relative error 1.5e-7; the angle is a quadrant and y in [-1/2, 1/2) of a
  // right angle, split exactly in integers, s and c its sine and cosine.
  F f, offset;
  Math::split(radius_word, f, offset);
  F y = Math::to_float(I(angle_word << 2)) * 0x1p-32f;
  F p = f * 2.36163163f + 2.14767051f;
  F y2 = y * y;
  p = p * f + 1.55932653f;
  F s = y2 * -0.00459597912f + 0.0796831846f;
  p = p * f - 0.080431506f;
  F c = y2 * -0.020427959f + 0.253607005f;
  p = p * f + 0.54360491f;
  s = s * y2 - 0.645964622f;
  p = p * f - 0.663818896f;
  c = c * y2 - 1.23369801f;
  p = p * f + 1.00006878f;
  s = (s * y2 + 1.57079637f) * y;
  p = p * f - 1.99999976f;
  c = c * y2 + 1.0f;
  F radius = Math::sqrt(p * f + offset);

  U quadrant = angle_word + (1u << 29);
  Math::turn(quadrant, c, s);
  radius = Math::with_sign(radius, quadrant);  // half a turn
  first = radius * c;
  second = radius * s;
}

}  // namespace lddgan
