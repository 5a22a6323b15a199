// h = resample(act(scale * groupnorm(x) + shift)) and skip_out = resample(skip): by two, with the
// taps [1, 3, 3, 1] along both axes. All images are channels_last.
#pragma once

#include "lddgan/ada_group_norm.h"

namespace lddgan {

struct NormResampleArgs {
  AdaGroupNormArgs norm;  // of x, without x2 and bias; `out` is h
  const void* skip;       // [samples, height, width, skip_channels], often x itself
  void* skip_out;
  int64_t skip_channels;
  int64_t height, width;  // of x and skip; the outputs' are twice that, or half, rounded down
  bool up;
};

inline int64_t resampled(const NormResampleArgs& a, int64_t length) {
  return a.up ? 2 * length : length / 2;
}

// Going down, weight j of output o multiplies the input at 2 o - 1 + j.
inline float resample_weight(int j) { return j == 0 || j == 3 ? 0.125f : 0.375f; }

#if defined(LDDGAN_CUDA)
// `partial` is [samples, groups, parts, 2]: the moments of parts of the pixels (ada_group_norm.h).
// Launches on `stream` (a cudaStream_t); returns a cudaError_t.
int norm_resample_cuda(const NormResampleArgs& args, const float* partial, int parts, void* stream);
#endif

}  // namespace lddgan

LDDGAN_DECLARE_CPU(norm_resample, NormResampleArgs)
