// x with a channel appended: each set of samples' mean standard deviation.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

// Sample n belongs to set n % sets; members = samples / sets.
struct MinibatchStddevArgs {
  const void* x;     // [members * sets, channels, plane], or [.., plane, channels]
  const void* grad;  // backward: of the output, [.., channels + 1, plane] in x's layout
  void* out;         // forward: the output; backward: x's gradient
  double* partial;   // [sets, minibatch_stddev_rows(...)]; backward: [sets]
  int64_t members;
  int64_t sets;
  int64_t channels;
  int64_t plane;
  bool channels_last;
  Dtype dtype;
};

// A sample is walked in rows: of a whole pixel in channels_last, else of this many elements.
constexpr int64_t kStddevRow = 1024;

static inline int64_t minibatch_stddev_rows(int64_t channels, int64_t plane, bool channels_last) {
  return channels_last ? plane : (channels * plane + kStddevRow - 1) / kStddevRow;
}

}  // namespace lddgan

LDDGAN_DECLARE_CPU(minibatch_stddev, MinibatchStddevArgs)
LDDGAN_DECLARE_CPU(minibatch_stddev_backward, MinibatchStddevArgs)
