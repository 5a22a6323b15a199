// Resampling by a FIR filter: zero-stuff by `up`, pad, convolve, keep every `down`-th.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

struct Upfirdn2dArgs {
  const void* x;      // [n, c, h, w]
  const float* taps;  // [taps_h, taps_w], or [taps_w] for both axes where separable
  void* out;          // [n, c, out_h, out_w]
  int64_t n, c, h, w, out_h, out_w;
  int64_t up, down, taps_h, taps_w;
  int64_t pad_x, pad_y;  // before the first element, counted after zero-stuffing
  bool separable;
  bool reversed;       // correlate with the taps instead of convolving: the adjoint's direction
  bool channels_last;  // both tensors; else contiguous
  Dtype dtype;
};

#if defined(LDDGAN_CUDA)
// Launches on `stream` (a cudaStream_t); returns a cudaError_t.
int upfirdn2d_cuda(const Upfirdn2dArgs& args, void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(upfirdn2d, Upfirdn2dArgs)
