// out = (x + h + h2 + bias) * factor, elementwise, the bias per channel.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

// Element i of x, h, h2 and out is of channel (i / inner) % channels.
struct ResidualScaleArgs {
  const void* x;     // [count]
  const void* h;     // [count], in x's element order
  const void* h2;    // [count], in x's element order, or null
  const void* bias;  // [channels], or null
  void* out;         // [count]
  int64_t count;
  int64_t channels;
  int64_t inner;  // neighbours of one channel: 1 in channels_last, else height * width
  float factor;
  Dtype dtype;
  Dtype bias_dtype;  // `dtype` or float32; on the CPU float32
};

#if defined(LDDGAN_CUDA)
// Launches on `stream` (a cudaStream_t); returns a cudaError_t.
int residual_scale_cuda(const ResidualScaleArgs& args, void* stream);

// The same of images, with the moments of the result as stored; `channels` is their number.
struct ResidualScaleMomentsArgs {
  ResidualScaleArgs sum;
  float* moments;  // [samples, groups, parts, 2], as ada_group_norm_moments_cuda has them
  int64_t samples, pixels, groups;
  bool channels_last;
  int block_groups;  // neighbouring groups of a block: lddgan_kernels/ops/_norm_plan.py decides
  int parts;         // pieces of the pixels, likewise
};

int residual_scale_moments_cuda(const ResidualScaleMomentsArgs& args, void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(residual_scale, ResidualScaleArgs)
