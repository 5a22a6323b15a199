// Rows to unit mean square: out = z / sqrt(mean(z^2) + eps).
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

struct PixelNormArgs {
  const void* z;     // [rows, length]
  const void* grad;  // backward only, like z
  void* out;         // like z
  int64_t rows;
  int64_t length;
  Dtype dtype;
};

}  // namespace lddgan

LDDGAN_DECLARE_CPU(pixel_norm, PixelNormArgs)
LDDGAN_DECLARE_CPU(pixel_norm_backward, PixelNormArgs)
