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
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(residual_scale, ResidualScaleArgs)
