// 3x3 convolution, stride 1, zero padding 1, by Winograd's F(2x2, 3x3), channels_last.
#pragma once

#include <cstdint>

#include "lddgan/isa.h"

namespace lddgan {

// Output channels of one panel of the packed weights; c_out is a multiple.
constexpr int kConvPanel = 32;
// Input channels that lie together in the transformed input; c_in is a multiple.
constexpr int kConvLane = 16;

struct Conv3x3Args {
  const float* x;         // [n, h, w, c_in]
  const float* weight;    // [c_out / kConvPanel, 16, c_in, kConvPanel], by pack_conv3x3
  const float* bias;      // [c_out] or null
  const float* residual;  // [n, h, w, c_out], added, or null
  float* out;             // [n, h, w, c_out]
  int64_t n, h, w, c_in, c_out;
};

// G g G' of every pair of channels.
struct PackConv3x3Args {
  const float* weight;  // element (d, c, i, j) at d*stride_d + c*stride_c + i*stride_i + j*stride_j
  float* packed;        // [c_out / kConvPanel, 16, c_in, kConvPanel]
  int64_t c_out, c_in;
  int64_t stride_d, stride_c, stride_i, stride_j;
};

// The gradient of the weight.
struct Conv3x3WeightGradArgs {
  const float* x;      // [n, h, w, c_in]
  const float* grad;   // [n, h, w, c_out], of the output
  float* grad_weight;  // element (d, c, i, j) as in PackConv3x3Args; c_out, c_in: any
  int64_t n, h, w, c_in, c_out;
  int64_t stride_d, stride_c, stride_i, stride_j;
};

}  // namespace lddgan

LDDGAN_DECLARE_CPU(conv3x3, Conv3x3Args)
LDDGAN_DECLARE_CPU(pack_conv3x3, PackConv3x3Args)
LDDGAN_DECLARE_CPU(conv3x3_weight_grad, Conv3x3WeightGradArgs)
