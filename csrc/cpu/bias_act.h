// out = act(x + bias), the bias per channel.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

// x is [images, channels, plane], or [images * plane, channels] where channels are innermost
// (channels_last, and tensors (N, C) with plane 1).
struct BiasActArgs {
  const void* x;
  const float* bias;  // [channels]
  void* out;          // like x
  int64_t images;
  int64_t channels;
  int64_t plane;
  bool innermost;  // channels are
  bool silu;       // else leaky_relu
  Dtype dtype;
};

// Sums over rows are taken in chunks, added up in a fixed order whatever the number of threads.
constexpr int64_t kBiasActRows = 64;

struct BiasActBackwardArgs {
  const void* grad;
  const void* x;
  const float* bias;
  void* grad_x;      // like x
  float* grad_bias;  // [channels]
  float* partial;    // [bias_act_chunks(...), channels]
  int64_t images;
  int64_t channels;
  int64_t plane;
  bool innermost;
  bool silu;
  Dtype dtype;
};

static inline int64_t bias_act_chunks(int64_t images, int64_t plane, bool innermost) {
  return innermost ? (images * plane + kBiasActRows - 1) / kBiasActRows : images;
}

}  // namespace lddgan

LDDGAN_DECLARE_CPU(bias_act, BiasActArgs)
LDDGAN_DECLARE_CPU(bias_act_backward, BiasActBackwardArgs)
