// What vec.h leaves to the instruction set, on AVX2 with F16C.
#pragma once

#include <immintrin.h>

#include "vec_types.h"

namespace lddgan::LDDGAN_ISA {

LDDGAN_INLINE Vec load(const BFloat16* p) {
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return (Vec)_mm256_slli_epi32(wide, 16);
}

LDDGAN_INLINE Vec load(const Half* p) {
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

LDDGAN_INLINE void store(BFloat16* p, Vec v) {
  __m256i word = (__m256i)v;
  __m256i even = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
  __m256i up = _mm256_add_epi32(even, _mm256_add_epi32(word, _mm256_set1_epi32(0x7fff)));
  __m256i quiet = _mm256_or_si256(word, _mm256_set1_epi32(0x00400000));
  __m256 is_nan = _mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
  up = (__m256i)_mm256_blendv_ps((__m256)up, (__m256)quiet, is_nan);
  up = _mm256_srai_epi32(up, 16);  // with their sign, so that the saturating pack leaves them alone
  store_raw(p, _mm_packs_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1)));
}

LDDGAN_INLINE void store(Half* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

LDDGAN_INLINE void store_stream(float* p, Vec v) { _mm256_stream_ps(p, (__m256)v); }

template <typename T>
LDDGAN_INLINE void store_stream(T* p, Vec v) {
  T buffer[kWidth];
  store(buffer, v);
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), load_raw<__m128i>(buffer));
}

LDDGAN_INLINE void stream_fence() { _mm_sfence(); }

LDDGAN_INLINE Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
LDDGAN_INLINE Vec min(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
LDDGAN_INLINE Vec sqrt(Vec v) { return (Vec)_mm256_sqrt_ps((__m256)v); }

LDDGAN_INLINE float sum(Vec v) { return sum_by_halves(v); }

}  // namespace lddgan::LDDGAN_ISA
