// x_t = a_s_cum[t] x0 + sigmas_cum[t] n_t; x_next = a_s[t + 1] x_t + sigmas[t + 1] n_next.
#pragma once

#include "lddgan/seeded_normal.h"

namespace lddgan {

struct DiffusePairArgs {
  const void* x0;    // a batch
  const int64_t* t;  // [samples], each in 0..num_steps - 1 (elsewhere: NaN on CUDA)
  const float* a_s;  // the tables: [num_steps + 1]
  const float* sigmas;
  const float* a_s_cum;
  const float* sigmas_cum;
  const int64_t* seeds;    // [samples], or null: the noise is given
  const void* noise_t;     // like x0
  const void* noise_next;  // like x0
  void* x_t;               // like x0
  void* x_next;            // like x0
  Batch batch;
  int64_t num_steps;
  uint32_t stream_t;
  uint32_t stream_next;
  uint32_t step;
  Dtype dtype;
};

#if defined(LDDGAN_CUDA)
// Launches on `stream` (a cudaStream_t); returns a cudaError_t.
int diffuse_pair_cuda(const DiffusePairArgs& args, void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(diffuse_pair, DiffusePairArgs)
