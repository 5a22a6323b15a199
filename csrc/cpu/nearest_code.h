// Vector quantisation: the nearest code of each pixel's vector.
#pragma once

#include <cstdint>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

namespace lddgan {

constexpr int64_t kCodeBlock = 32;  // codes that are scanned or passed over together
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

static inline int64_t code_blocks(int64_t codes) { return (codes + kCodeBlock - 1) / kCodeBlock; }

// In units of 4 bytes. Of the codes: their centre, the codes twice (as scanned, and transposed),
// their order, the bounds of each block. Of the pixels: their order, and the tiles of vectors. And
// what sorting needs besides.
static inline int64_t nearest_code_workspace(int64_t pixels, int64_t depth, int64_t codes) {
  int64_t blocks = code_blocks(codes), padded = blocks * kCodeBlock;
  int64_t tiles = (pixels + kPixelTile - 1) / kPixelTile;
  int64_t of_codes = depth + padded * (2 * depth + 2) + 2 * depth * (blocks + kPixelTile);
  return of_codes + tiles * kPixelTile * (depth + 1) + 3 * (pixels + codes);
}

}  // namespace lddgan

LDDGAN_DECLARE_CPU(nearest_code, NearestCodeArgs)
