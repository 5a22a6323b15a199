// Haar wavelet transform of one level and its inverse; sub-bands LL, LH, HL, HH of C channels each.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

struct HaarArgs {
  const void* in;  // dwt: [n, c, 2h, 2w]; idwt: [n, 4c, h, w]
  void* out;       // the other of the two
  int64_t n, c, h, w;
  float scale;         // of the sub-bands
  bool channels_last;  // both tensors; else contiguous
  Dtype dtype;
};

#if defined(LDDGAN_CUDA)
// Launch on `stream` (a cudaStream_t); return a cudaError_t.
int haar_dwt2d_cuda(const HaarArgs& args, void* stream);
int haar_idwt2d_cuda(const HaarArgs& args, void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(haar_dwt2d, HaarArgs)
LDDGAN_DECLARE_CPU(haar_idwt2d, HaarArgs)
