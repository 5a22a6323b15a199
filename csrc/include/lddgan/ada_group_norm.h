// out = act(scale * groupnorm(cat(x + bias, x2)) + shift) and its gradient.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

// A matrix of per-channel values: row n is `stride` elements after row n - 1 (0: one row for all).
struct ChannelRows {
  const void* data;  // [samples, channels], or null
  int64_t stride;
  Dtype dtype;
};

// Images are [samples, channels, pixels], or [samples, pixels, channels] in channels_last.
struct AdaGroupNormArgs {
  const void* x;      // `channels1` channels
  const void* x2;     // `channels2` channels, or null
  ChannelRows scale;  // channels1 + channels2
  ChannelRows shift;
  ChannelRows bias;  // channels1, or null
  void* out;         // channels1 + channels2 channels
  float* mean;       // [samples, groups], of x + bias; read by backward, written by forward unless
                     // null (a null is for the CPU alone)
  float* rstd;       // [samples, groups]
  int64_t samples, channels1, channels2, pixels, groups;
  float eps;
  Dtype dtype;  // of x, x2, out and their gradients
  bool channels_last;
  bool silu;
};

struct AdaGroupNormBackwardArgs {
  AdaGroupNormArgs forward;  // `out` and `eps` unused
  const void* grad_out;
  void* grad_x;
  void* grad_x2;     // null without x2
  void* grad_scale;  // [samples, channels], per sample even where scale is one row for all
  void* grad_shift;
  void* grad_bias;  // [samples, channels1], null without bias
  Dtype grad_scale_dtype, grad_shift_dtype, grad_bias_dtype;
};

#if defined(LDDGAN_CUDA)
// How the GPU kernels cut the work: lddgan_kernels/ops/_norm_plan.py decides.
struct AdaGroupNormPlan {
  bool onchip;       // the tile stays in shared memory; else two kernels and a workspace
  int groups;        // neighbouring groups of a block
  int parts;         // pieces of the pixels; on chip, the blocks of a cluster
  float* workspace;  // forward [samples, groups, parts, 2]; backward [3, samples, channels, parts]
};

// All launch on `stream` (a cudaStream_t) and return a cudaError_t.

// Into plan.workspace: partial moments [samples, groups, parts, 2] of x + bias and x2: of a group's
// channels and a part's pixels (norm_part_size) the mean, and the sum of squared deviations from
// it. Slots of empty parts hold zeros.
int ada_group_norm_moments_cuda(const AdaGroupNormArgs& args, const AdaGroupNormPlan& plan,
                                void* stream);
// Forward with the partial moments that plan.workspace holds; the plan is not on chip.
int ada_group_norm_apply_cuda(const AdaGroupNormArgs& args, const AdaGroupNormPlan& plan,
                              void* stream);
int ada_group_norm_forward_cuda(const AdaGroupNormArgs& args, const AdaGroupNormPlan& plan,
                                void* stream);
int ada_group_norm_backward_cuda(const AdaGroupNormBackwardArgs& args, const AdaGroupNormPlan& plan,
                                 void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(ada_group_norm_forward, AdaGroupNormArgs)
LDDGAN_DECLARE_CPU(ada_group_norm_backward, AdaGroupNormBackwardArgs)
