// Convolution of stride 1, odd kernel and zero padding that keeps the resolution, channels_last.
#pragma once

#include "conv3x3.h"

namespace lddgan {

struct PackedConv2dArgs {
  const float* x;         // [n, h, w, c_in]
  const float* weight;    // [c_out / kConvPanel, kernel * kernel * c_in, kConvPanel]
  const float* bias;      // [c_out] or null
  const float* residual;  // [n, h, w, c_out], added, or null
  float* out;             // [n, h, w, c_out]
  int64_t n, h, w, c_in, c_out, kernel;
};

}  // namespace lddgan

LDDGAN_DECLARE_CPU(packed_conv2d, PackedConv2dArgs)
