// What vec.h leaves to the instruction set, on AVX-512.
#pragma once

#include <immintrin.h>

#include "vec_types.h"

namespace lddgan::LDDGAN_ISA {

LDDGAN_INLINE Vec load(const BFloat16* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return (Vec)_mm512_slli_epi32(wide, 16);
}

LDDGAN_INLINE Vec load(const Half* p) {
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

LDDGAN_INLINE void store(BFloat16* p, Vec v) {
#if defined(__AVX512BF16__)
  store_raw(p, _mm512_cvtneps_pbh((__m512)v));  // denormals to zero
#else
  __m512i word = (__m512i)v;
  __m512i even = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(word, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
  __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  up = _mm512_mask_or_epi32(up, is_nan, word, _mm512_set1_epi32(0x00400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
#endif
}

LDDGAN_INLINE void store(Half* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

LDDGAN_INLINE void store_stream(float* p, Vec v) { _mm512_stream_ps(p, (__m512)v); }

template <typename T>
LDDGAN_INLINE void store_stream(T* p, Vec v) {
  T buffer[kWidth];
  store(buffer, v);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), load_raw<__m256i>(buffer));
}

LDDGAN_INLINE void stream_fence() { _mm_sfence(); }

LDDGAN_INLINE Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
LDDGAN_INLINE Vec min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
LDDGAN_INLINE Vec sqrt(Vec v) { return (Vec)_mm512_sqrt_ps((__m512)v); }
LDDGAN_INLINE float sum(Vec v) { return _mm512_reduce_add_ps((__m512)v); }

}  // namespace lddgan::LDDGAN_ISA
