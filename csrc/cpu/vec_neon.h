// What vec.h leaves to the instruction set, on NEON as every aarch64 processor has it.
#pragma once

#include <arm_neon.h>

#include "vec_types.h"

namespace lddgan::LDDGAN_ISA {

LDDGAN_INLINE Vec load(const BFloat16* p) { return (Vec)vshll_n_u16(load_raw<uint16x4_t>(p), 16); }

LDDGAN_INLINE Vec load(const Half* p) { return (Vec)vcvt_f32_f16(load_raw<float16x4_t>(p)); }

LDDGAN_INLINE void store(BFloat16* p, Vec v) {
  const uint32x4_t bits = (uint32x4_t)v;
  // The last bit that is kept, moved down, rounds ties to even.
  uint32x4_t up = vandq_u32(bits, vdupq_n_u32(0x10000));
  up = vsraq_n_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), up, 16);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
  up = vbslq_u32(vceqq_f32((float32x4_t)v, (float32x4_t)v), up, quiet);
  store_raw(p, vshrn_n_u32(up, 16));
}

LDDGAN_INLINE void store(Half* p, Vec v) { store_raw(p, vcvt_f16_f32((float32x4_t)v)); }

template <typename T>
LDDGAN_INLINE void store_stream(T* p, Vec v) {
  store(p, v);
}

LDDGAN_INLINE void stream_fence() {}

LDDGAN_INLINE Vec max(Vec a, Vec b) { return (Vec)vmaxnmq_f32((float32x4_t)a, (float32x4_t)b); }
LDDGAN_INLINE Vec min(Vec a, Vec b) { return (Vec)vminnmq_f32((float32x4_t)a, (float32x4_t)b); }
LDDGAN_INLINE Vec sqrt(Vec v) { return (Vec)vsqrtq_f32((float32x4_t)v); }
LDDGAN_INLINE float sum(Vec v) { return vaddvq_f32((float32x4_t)v); }

}  // namespace lddgan::LDDGAN_ISA
