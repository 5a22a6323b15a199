// A float vector of the widest register that this translation unit is compiled for.
//
// Each file in csrc/cpu is compiled once per instruction set (see isa.h); everything here lives in
// that instruction set's namespace so that the linker never mixes them. GCC/Clang vector extensions
// carry the arithmetic, so the same source runs on AVX-512, AVX2, SSE2 and other processors.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

#define LDDGAN_INLINE inline __attribute__((always_inline))

namespace lddgan::LDDGAN_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4), may_alias));
typedef int32_t VecI __attribute__((vector_size(kWidth * 4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4), may_alias));
typedef uint16_t VecH __attribute__((vector_size(kWidth * 2), may_alias));

// Subtracting zero leaves every value alone, so no instruction is spent; adding it would turn -0.
LDDGAN_INLINE Vec broadcast(float value) { return value - Vec{}; }

template <typename V, typename T>
LDDGAN_INLINE V load_raw(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <typename V, typename T>
LDDGAN_INLINE void store_raw(T* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

// Load kWidth elements of any storage type as floats.
LDDGAN_INLINE Vec load(const float* p) { return load_raw<Vec>(p); }

LDDGAN_INLINE Vec load(const BFloat16* p) {
#if defined(__AVX512F__)
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return (Vec)_mm512_slli_epi32(wide, 16);
#elif defined(__AVX2__)
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return (Vec)_mm256_slli_epi32(wide, 16);
#else
  VecU bits = __builtin_convertvector(load_raw<VecH>(p), VecU) << 16;
  return (Vec)bits;
#endif
}

LDDGAN_INLINE Vec load(const Half* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__) && defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

// Store kWidth floats, rounded to nearest even.
LDDGAN_INLINE void store(float* p, Vec v) { store_raw(p, v); }

LDDGAN_INLINE void store(BFloat16* p, Vec v) {
#if defined(__AVX512BF16__)
  store_raw(p, _mm512_cvtneps_pbh((__m512)v));  // denormals to zero
#elif defined(__AVX512F__)
  __m512i word = (__m512i)v;
  __m512i even = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(word, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
  __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  up = _mm512_mask_or_epi32(up, is_nan, word, _mm512_set1_epi32(0x00400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
#elif defined(__AVX2__)
  // The same; shifted with their sign, the words pass the saturating pack as they are.
  __m256i word = (__m256i)v;
  __m256i even = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
  __m256i up = _mm256_add_epi32(even, _mm256_add_epi32(word, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(word, _mm256_set1_epi32(0x00400000));
  __m256 is_nan = _mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
  up = (__m256i)_mm256_blendv_ps((__m256)up, (__m256)quiet, is_nan);
  up = _mm256_srai_epi32(up, 16);
  store_raw(p, _mm_packs_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1)));
#else
  VecU bits = (VecU)v;
  VecU rounded = bits + (((bits >> 16) & 1u) + 0x7fffu);
  // A NaN keeps its sign and quiet bit; rounding could carry it into infinity.
  VecU quiet = (bits & 0xffff0000u) | 0x00400000u;
  VecI is_nan = v != v;
  VecU chosen = ((VecU)is_nan & quiet) | (~(VecU)is_nan & rounded);
  store_raw(p, __builtin_convertvector(chosen >> 16, VecH));
#endif
}

LDDGAN_INLINE void store(Half* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__) && defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int i = 0; i < kWidth; ++i) p[i] = to_half(v[i]);
#endif
}

// The tail of a row: `count` < kWidth elements, the rest read as zero.
template <typename T>
LDDGAN_INLINE Vec load_tail(const T* p, int count) {
  T buffer[kWidth] = {};
  std::memcpy(buffer, p, count * sizeof(T));
  return load(buffer);
}

template <typename T>
LDDGAN_INLINE void store_tail(T* p, Vec v, int count) {
  T buffer[kWidth];
  store(buffer, v);
  std::memcpy(p, buffer, count * sizeof(T));
}

// A whole vector where count is kWidth, else the tail of a row.
template <typename T>
LDDGAN_INLINE Vec load_up_to(const T* p, int count) {
  return count == kWidth ? load(p) : load_tail(p, count);
}

template <typename T>
LDDGAN_INLINE void store_up_to(T* p, Vec v, int count) {
  count == kWidth ? store(p, v) : store_tail(p, v, count);
}

// One element, rounded to nearest even.
LDDGAN_INLINE void put(float* p, float value) { *p = value; }
LDDGAN_INLINE void put(BFloat16* p, float value) { *p = to_bfloat16(value); }
LDDGAN_INLINE void put(Half* p, float value) { *p = to_half(value); }

// `mask` comes from a comparison: all bits of a lane or none. One blend instruction.
// Vectors that may reach past what is wanted, up to `limit`: reading lanes of no use, and writing
// lanes that the caller overwrites afterwards.
template <typename T>
LDDGAN_INLINE Vec load_until(const T* p, const T* limit) {
  return limit - p < kWidth ? load_tail(p, int(limit - p)) : load(p);
}

template <typename T>
LDDGAN_INLINE void store_until(T* p, Vec v, const T* limit) {
  if (limit - p < kWidth) {
    store_tail(p, v, int(limit - p));
  } else {
    store(p, v);
  }
}

// Stores past the caches, for outputs larger than they are: p must be aligned to a whole vector,
// and stream_fence follow before other threads read. Without AVX2 a plain store.
LDDGAN_INLINE void store_stream(float* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#else
  store(p, v);
#endif
}

template <typename T>
LDDGAN_INLINE void store_stream(T* p, Vec v) {
#if defined(__AVX512F__)
  T buffer[kWidth];
  store(buffer, v);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), load_raw<__m256i>(buffer));
#elif defined(__AVX2__)
  T buffer[kWidth];
  store(buffer, v);
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), load_raw<__m128i>(buffer));
#else
  store(p, v);
#endif
}

LDDGAN_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Whether to stream: inputs and outputs together past what the last-level cache keeps.
inline bool worth_streaming(int64_t bytes) { return bytes > int64_t(80) << 20; }

template <bool stream, typename T>
LDDGAN_INLINE void store_either(T* p, Vec v) {
  if constexpr (stream) {
    store_stream(p, v);
  } else {
    store(p, v);
  }
}

LDDGAN_INLINE Vec select(VecI mask, Vec yes, Vec no) { return mask ? yes : no; }
LDDGAN_INLINE VecI select(VecI mask, VecI yes, VecI no) { return mask ? yes : no; }

// One instruction each; `b` where a lane is unordered.
LDDGAN_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
LDDGAN_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

LDDGAN_INLINE Vec sqrt(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < kWidth; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// v with the elements from `count` on set to zero.
LDDGAN_INLINE Vec keep_first(Vec v, int count) {
  VecI index;
  for (int i = 0; i < kWidth; ++i) index[i] = i;
  return select(index < count, v, Vec{});
}

// The sum of all elements, added as a tree.
LDDGAN_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float part[kWidth];
  store_raw(part, v);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
#endif
}

// Lane i of the result is lane index(i) of a and b laid side by side.
template <auto index, int... lane>
LDDGAN_INLINE Vec shuffle_lanes(Vec a, Vec b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, index(lane)...);
}
template <auto index>
LDDGAN_INLINE Vec shuffle(Vec a, Vec b) {
  return shuffle_lanes<index>(a, b, std::make_integer_sequence<int, kWidth>());
}

// a and b side by side are rows of `block` lanes: the rows of even number, those of odd number.
// With block 1 this de-interleaves 2 * kWidth elements.
template <int block = 1>
LDDGAN_INLINE Vec even(Vec a, Vec b) {
  return shuffle<[](int i) { return i / block * 2 * block + i % block; }>(a, b);
}
template <int block = 1>
LDDGAN_INLINE Vec odd(Vec a, Vec b) {
  return shuffle<[](int i) { return (i / block * 2 + 1) * block + i % block; }>(a, b);
}

// The inverse: rows of a and b in turn, the first and the second kWidth lanes of them.
template <int block = 1>
LDDGAN_INLINE Vec interleave_low(Vec a, Vec b) {
  if constexpr (block == kWidth) return a;
  return shuffle<[](int i) { return i / block % 2 * kWidth + i / block / 2 * block + i % block; }>(
      a, b);
}
template <int block = 1>
LDDGAN_INLINE Vec interleave_high(Vec a, Vec b) {
  if constexpr (block == kWidth) return b;
  return shuffle<[](int i) {
    return i / block % 2 * kWidth + i / block / 2 * block + i % block + kWidth / 2;
  }>(a, b);
}

// Lane i of the result is the sum of all elements of rows[i]; clobbers the rows.
LDDGAN_INLINE Vec sums(Vec (&rows)[kWidth]) {
  for (int count = kWidth; count > 1; count /= 2) {
    for (int i = 0; i < count / 2; ++i) {
      rows[i] = even(rows[2 * i], rows[2 * i + 1]) + odd(rows[2 * i], rows[2 * i + 1]);
    }
  }
  return rows[0];
}

// Lanes moved up by `count`, the last of `before` entering; or down, the first of `after` entering.
template <int count>
LDDGAN_INLINE Vec lanes_up(Vec before, Vec v) {
  return shuffle<[](int i) { return i + kWidth - count; }>(before, v);
}
template <int count>
LDDGAN_INLINE Vec lanes_down(Vec v, Vec after) {
  return shuffle<[](int i) { return i + count; }>(v, after);
}

// e^x with relative error below 2e-7 on [-87, 88]; clamped outside, so never NaN, inf or denormal.
LDDGAN_INLINE Vec exp(Vec x) {
  x = max(min(x, broadcast(88.0f)), broadcast(-87.0f));
  // x = n ln 2 + r with |r| <= ln(2)/2, by the round-to-nearest trick of adding 1.5 * 2^23.
  const Vec magic = broadcast(12582912.0f);
  Vec shifted = x * 1.44269504f + magic;
  Vec n = shifted - magic;
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Taylor-like minimax polynomial of degree 6 for e^r.
  Vec p = r * 1.3981999e-3f + 8.3334519e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  VecI exponent = (VecI)shifted << 23;
  return (Vec)((VecI)p + exponent);
}

LDDGAN_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
LDDGAN_INLINE Vec silu(Vec x) { return x / (1.0f + exp(-x)); }

// A row through one generic body: f(i, Block<kBlock>{}) for several vectors at once (so that their
// chains of dependent instructions overlap), f(i, Full{}) for one, f(i, count) for the tail.
template <int count>
struct Block {};
using Full = Block<1>;

template <typename Lanes>
constexpr int kVectorsOf = 1;
template <int count>
constexpr int kVectorsOf<Block<count>> = count;

template <int kBlock = 1, typename F>
LDDGAN_INLINE void for_vectors(int64_t count, const F& f) {
  int64_t i = 0;
  if constexpr (kBlock > 1) {
    for (; i + kBlock * kWidth <= count; i += kBlock * kWidth) f(i, Block<kBlock>{});
  }
  for (; i + kWidth <= count; i += kWidth) f(i, Full{});
  if (i < count) f(i, int(count - i));
}

template <typename T, int count>
LDDGAN_INLINE Vec load(const T* p, Block<count>) {
  return load(p);
}
template <typename T>
LDDGAN_INLINE Vec load(const T* p, int count) {
  return load_tail(p, count);
}
template <typename T, int count>
LDDGAN_INLINE void store(T* p, Vec v, Block<count>) {
  store(p, v);
}
template <typename T>
LDDGAN_INLINE void store(T* p, Vec v, int count) {
  store_tail(p, v, count);
}
template <int count>
LDDGAN_INLINE Vec keep_first(Vec v, Block<count>) {
  return v;
}

}  // namespace lddgan::LDDGAN_ISA
