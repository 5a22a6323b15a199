// Vector quantisation: the nearest code of each pixel's vector.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

constexpr int64_t kCodeBlock = 32;  // codes scanned before the running minimum is updated
constexpr int64_t kPixelTile = 64;  // at most this many pixels are scanned together

struct NearestCodeArgs {
  const void* z;          // [N, D, plane], or [N, plane, D] where channels_last
  const float* codebook;  // [K, D]
  void* quantised;        // like z
  int64_t* indices;       // [N, plane]
  float* workspace;       // [nearest_code_workspace(...)]
  int64_t pixels;         // N * plane
  int64_t plane;          // H * W
  int64_t depth;          // D
  int64_t codes;          // K
  bool channels_last;
  Dtype dtype;
};

static inline int64_t padded_codes(int64_t codes) {
  return (codes + kCodeBlock - 1) / kCodeBlock * kCodeBlock;
}

// Floats: the centre, the codes twice (as scanned, and transposed), and the tiles of vectors.
static inline int64_t nearest_code_workspace(int64_t pixels, int64_t depth, int64_t codes) {
  int64_t tiles = (pixels + kPixelTile - 1) / kPixelTile;
  return depth + padded_codes(codes) * (2 * depth + 1) + tiles * kPixelTile * depth;
}

}  // namespace lddgan

LDDGAN_DECLARE_CPU(nearest_code, NearestCodeArgs)
