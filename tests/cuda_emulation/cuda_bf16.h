// bfloat16 of the emulated CUDA runtime.
#pragma once

#include "lddgan/dtype.h"

struct __nv_bfloat16 {
  lddgan::BFloat16 value;
};
static inline float __bfloat162float(__nv_bfloat16 x) { return lddgan::to_float(x.value); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {lddgan::to_bfloat16(x)}; }
