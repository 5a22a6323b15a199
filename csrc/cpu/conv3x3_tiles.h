// The tiles of Winograd's F(2x2, 3x3), and their transforms (conv3x3.cpp). Channels_last.
#pragma once

#include "conv3x3.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

// A map [n, h, w, channels] in tiles of 2x2 pixels.
struct Map {
  const float* data;
  int64_t n, h, w, channels;
  int64_t high() const { return (h + 1) / 2; }
  int64_t wide() const { return (w + 1) / 2; }
  int64_t tiles() const { return n * high() * wide(); }
  bool contains(int64_t y, int64_t x) const { return y >= 0 && y < h && x >= 0 && x < w; }
};

struct Tile {
  int64_t image, y, x;  // y, x of its upper left pixel
  Tile(const Map& map, int64_t index)
      : image(index / (map.high() * map.wide())),
        y(index / map.wide() % map.high() * 2),
        x(index % map.wide() * 2) {}
};

// f(c, lanes, to) for the vectors of `channels` channels, in groups of kConvLane that lie `step`
// floats apart at `to`; nothing is done for what a group lacks.
template <typename F>
LDDGAN_INLINE void for_lanes(int64_t channels, float* to, int64_t step, const F& f) {
  for (int64_t c = 0; c < channels; c += kConvLane, to += step) {
    for (int lane = 0; lane < kConvLane; lane += kWidth) {
      const int64_t left = channels - c - lane;
      if (left >= kWidth) {
        f(c + lane, Full{}, to + lane);
      } else {
        f(c + lane, left > 0 ? int(left) : 0, to + lane);
      }
    }
  }
}

// B' d B of a tile's 4x4 inputs: 16 values for every channel, `stride` floats apart; groups of
// kConvLane channels `step` apart, zeros where the last one lacks some.
template <bool kInside>
void transform_input(const Map& map, const Tile& t, float* v, int64_t step, int64_t stride) {
  const float* corner = map.data + ((t.image * map.h + t.y - 1) * map.w + t.x - 1) * map.channels;
  bool valid[16];
  for (int i = 0; i < 16; ++i) valid[i] = map.contains(t.y - 1 + i / 4, t.x - 1 + i % 4);
  for_lanes(map.channels, v, step, [&](int64_t c, auto lanes, float* to) {
    Vec d[16], rows[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      int64_t offset = ((i / 4) * map.w + i % 4) * map.channels + c;
      d[i] = kInside || valid[i] ? load(corner + offset, lanes) : Vec{};
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      rows[j] = d[j] - d[8 + j];
      rows[4 + j] = d[4 + j] + d[8 + j];
      rows[8 + j] = d[8 + j] - d[4 + j];
      rows[12 + j] = d[4 + j] - d[12 + j];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4, to += 4 * stride) {
      store(to, rows[i] - rows[i + 2]);
      store(to + stride, rows[i + 1] + rows[i + 2]);
      store(to + 2 * stride, rows[i + 2] - rows[i + 1]);
      store(to + 3 * stride, rows[i + 1] - rows[i + 3]);
    }
  });
}

inline void transform_input(const Map& map, const Tile& t, float* v, int64_t step, int64_t stride) {
  const bool inside = t.y > 0 && t.y + 2 < map.h && t.x > 0 && t.x + 2 < map.w;
  inside ? transform_input<true>(map, t, v, step, stride)
         : transform_input<false>(map, t, v, step, stride);
}

}  // namespace lddgan::LDDGAN_ISA
