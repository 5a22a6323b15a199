// What vec.h leaves to the instruction set, where none is known: the compiler's vectors alone.
#pragma once

#include "vec_types.h"

namespace lddgan::LDDGAN_ISA {

LDDGAN_INLINE Vec load(const BFloat16* p) {
  VecU bits = __builtin_convertvector(load_raw<VecH>(p), VecU) << 16;
  return (Vec)bits;
}

LDDGAN_INLINE Vec load(const Half* p) {
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
}

LDDGAN_INLINE void store(BFloat16* p, Vec v) {
  VecU bits = (VecU)v;
  VecU rounded = bits + (((bits >> 16) & 1u) + 0x7fffu);
  // A NaN keeps its sign and quiet bit; rounding could carry it into infinity.
  VecU quiet = (bits & 0xffff0000u) | 0x00400000u;
  VecI is_nan = v != v;
  VecU chosen = ((VecU)is_nan & quiet) | (~(VecU)is_nan & rounded);
  store_raw(p, __builtin_convertvector(chosen >> 16, VecH));
}

LDDGAN_INLINE void store(Half* p, Vec v) {
  for (int i = 0; i < kWidth; ++i) p[i] = to_half(v[i]);
}

template <typename T>
LDDGAN_INLINE void store_stream(T* p, Vec v) {
  store(p, v);
}

LDDGAN_INLINE void stream_fence() {}

LDDGAN_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
LDDGAN_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }

LDDGAN_INLINE Vec sqrt(Vec v) {
  for (int i = 0; i < kWidth; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}

LDDGAN_INLINE float sum(Vec v) { return sum_by_halves(v); }

}  // namespace lddgan::LDDGAN_ISA
