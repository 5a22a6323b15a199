// out = (x + h) / sqrt(2), elementwise.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

struct ResidualScaleArgs {
  const void* x;  // [count]
  const void* h;  // [count], in x's element order
  void* out;      // [count]
  int64_t count;
  Dtype dtype;
};

#if defined(LDDGAN_CUDA)
// Launches on `stream` (a cudaStream_t); returns a cudaError_t.
int residual_scale_cuda(const ResidualScaleArgs& args, void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(residual_scale, ResidualScaleArgs)
