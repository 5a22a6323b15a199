// float16 of the emulated CUDA runtime.
#pragma once

#include "lddgan/dtype.h"

struct __half {
  lddgan::Half value;
};
static inline float __half2float(__half x) { return lddgan::to_float(x.value); }
static inline __half __float2half_rn(float x) { return {lddgan::to_half(x)}; }
