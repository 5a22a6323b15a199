// Standard normal noise by seed; see lddgan_kernels/ops/_philox.py.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

// A batch in memory: `samples` dense samples of `channels` x `pixels` elements, channel-major, or
// pixel-major where channels_last.
struct Batch {
  int64_t samples;
  int64_t channels;
  int64_t pixels;
  bool channels_last;
};

struct SeededNormalArgs {
  const int64_t* seeds;  // [samples]
  void* out;             // a batch
  Batch batch;
  uint32_t stream;
  uint32_t step;
  Dtype dtype;
};

#if defined(LDDGAN_CUDA)
// Launches on `stream` (a cudaStream_t); returns a cudaError_t.
int seeded_normal_cuda(const SeededNormalArgs& args, void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(seeded_normal, SeededNormalArgs)
