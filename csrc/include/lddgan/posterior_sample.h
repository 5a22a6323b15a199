// out = coef1[t] x0 + coef2[t] x_next + exp(log_variance[t] / 2) n, without noise at t = 0.
#pragma once

#include "lddgan/seeded_normal.h"

namespace lddgan {

struct PosteriorSampleArgs {
  const void* x0;      // a batch
  const void* x_next;  // like x0
  const int64_t* t;    // [samples], each in 0..num_steps - 1 (elsewhere: NaN on CUDA)
  const float* coef1;  // the tables: [num_steps]
  const float* coef2;
  const float* log_variance;
  const int64_t* seeds;  // [samples], or null: the noise is given
  const void* noise;     // like x0
  void* out;             // like x0
  Batch batch;
  int64_t num_steps;
  uint32_t stream;
  uint32_t step;
  Dtype dtype;
};

// grad_x0 = coef1[t] grad, grad_x_next = coef2[t] grad.
struct PosteriorSampleBackwardArgs {
  const void* grad;  // a batch
  const int64_t* t;
  const float* coef1;
  const float* coef2;
  void* grad_x0;      // like grad
  void* grad_x_next;  // like grad
  int64_t samples;
  int64_t size;  // elements a sample
  int64_t num_steps;
  Dtype dtype;
};

#if defined(LDDGAN_CUDA)
// Launch on `stream` (a cudaStream_t); return a cudaError_t.
int posterior_sample_cuda(const PosteriorSampleArgs& args, void* stream);
int posterior_sample_backward_cuda(const PosteriorSampleBackwardArgs& args, void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(posterior_sample, PosteriorSampleArgs)
LDDGAN_DECLARE_CPU(posterior_sample_backward, PosteriorSampleBackwardArgs)
