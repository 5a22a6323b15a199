// The weight's gradient of conv3x3.cpp's convolution, by the transpose of its algorithm:
// G' [ sum over tiles of (B' d B) . (A e A') ] G, e being a tile's 2x2 gradients. Again 16
// multiplications where direct convolution has 36, again as 16 matrix products: (c_out, tiles) by
// (tiles, c_in).
#include "conv3x3_tiles.h"
#include "panels.h"

namespace lddgan::LDDGAN_ISA {

namespace {

// Tiles that are transformed and multiplied at a time.
constexpr int64_t kTiles = 256;
// Tiles summed in one run: shorter ones are more exact, and cost nothing down to this.
constexpr int64_t kRun = 32;
// A block of the products: kConvLane output channels by so many input channels.
constexpr int64_t kInputs = 32;
constexpr int64_t kBlock = 16 * kConvLane * kInputs;
// Of those, what is multiplied in registers at a time: so many output channels (AVX2: about) by
// vectors of input channels.
constexpr int kRowsOfGroup = kWidth == 16 ? 8 : 4;
constexpr int kVectors = vectors_of(kRowsOfGroup), kColumns = kVectors * kWidth;

// A e A': 16 values for every channel, laid out like those of transform_input.
void transform_gradient(const Map& map, const Tile& t, float* v, int64_t step, int64_t stride) {
  const float* corner = map.data + ((t.image * map.h + t.y) * map.w + t.x) * map.channels;
  const bool right = t.x + 1 < map.w, below = t.y + 1 < map.h;
  for_lanes(map.channels, v, step, [&](int64_t c, auto lanes, float* to) {
    const float* from = corner + c;
    const float* next = from + map.w * map.channels;
    Vec e0 = load(from, lanes), e1 = right ? load(from + map.channels, lanes) : Vec{};
    Vec e2 = below ? load(next, lanes) : Vec{};
    Vec e3 = below && right ? load(next + map.channels, lanes) : Vec{};
    Vec rows[8] = {e0, e1, e0 + e2, e1 + e3, e0 - e2, e1 - e3, -e2, -e3};
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2, to += 4 * stride) {
      store(to, rows[i]);
      store(to + stride, rows[i] + rows[i + 1]);
      store(to + 2 * stride, rows[i] - rows[i + 1]);
      store(to + 3 * stride, -rows[i + 1]);
    }
  });
}

// m[kRows][kColumns] += rows[tiles][kRows] ' columns[tiles][kColumns], of groups of kConvLane
// channels; `step` floats between those of the columns. Where `first`, m is 0 before.
template <int kRows>
void multiply(const float* rows, const float* columns, int64_t step, int64_t tiles, float* m,
              bool first) {
  constexpr int kGroup = kWidth / kConvLane;  // vectors lie in groups of their own: 1, else 0
  const int64_t next = kGroup == 1 ? step : kWidth;
  Vec sums[kRows][kVectors] = {};
  for (int64_t t = 0; t < tiles; ++t, rows += kConvLane, columns += kConvLane) {
    Factors<kRows> values;
    values.read(rows);
    Vec column[kVectors];
    for (int i = 0; i < kVectors; ++i) column[i] = load(columns + i * next);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kVectors; ++i) sums[r][i] += values[r] * column[i];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r, m += kInputs) {
    for (int i = 0; i < kVectors; ++i) {
      float* to = m + i * kWidth;
      store(to, first ? sums[r][i] : load(to) + sums[r][i]);
    }
  }
}

// The same of a whole group of rows, in as many accumulators as there are registers for.
void multiply_group(const float* rows, const float* columns, int64_t step, int64_t tiles, float* m,
                    bool first) {
  if constexpr (kWidth == 8) {
    multiply<6>(rows, columns, step, tiles, m, first);
    multiply<5>(rows + 6, columns, step, tiles, m + 6 * kInputs, first);
    multiply<5>(rows + 11, columns, step, tiles, m + 11 * kInputs, first);
  } else {
    for (int r = 0; r < kConvLane; r += kRowsOfGroup) {
      multiply<kRowsOfGroup>(rows + r, columns, step, tiles, m + r * kInputs, first);
    }
  }
}

// G' m G of a block of sums [16][kConvLane][kInputs], into the weights from (d, c) on.
void transform_sums(const Conv3x3WeightGradArgs& a, const float* sums, int64_t d, int64_t c) {
  constexpr int64_t kStride = kConvLane * kInputs;
  for (int64_t row = 0; row < kConvLane && d + row < a.c_out; ++row, sums += kInputs) {
    for (int64_t lane = 0; lane < kInputs && c + lane < a.c_in; lane += kWidth) {
      const float* m = sums + lane;
      Vec rows[12];
      for (int j = 0; j < 4; ++j) {
        Vec m1 = load(m + (4 + j) * kStride), m2 = load(m + (8 + j) * kStride);
        Vec half = (m1 + m2) * 0.5f;
        rows[j] = load(m + j * kStride) + half;
        rows[4 + j] = (m1 - m2) * 0.5f;
        rows[8 + j] = half + load(m + (12 + j) * kStride);
      }
      const int64_t left = a.c_in - c - lane;
      const int count = left < kWidth ? int(left) : kWidth;
      float* to = a.grad_weight + (d + row) * a.stride_d + (c + lane) * a.stride_c;
      for (int i = 0; i < 3; ++i, to += a.stride_i) {
        const Vec* r = rows + 4 * i;
        Vec half = (r[1] + r[2]) * 0.5f;
        Vec taps[3] = {r[0] + half, (r[1] - r[2]) * 0.5f, half + r[3]};
        for (int j = 0; j < 3; ++j) {
          float* tap = to + j * a.stride_j;
          if (a.stride_c == 1) {
            store_up_to(tap, taps[j], count);
          } else {
            for (int k = 0; k < count; ++k) tap[k * a.stride_c] = taps[j][k];
          }
        }
      }
    }
  }
}

// Transformed tiles of a map: 16 matrices [groups][tiles][kConvLane].
struct Transformed {
  const int64_t groups, step, stride;
  const Scratch values;

  // What lacks a group is multiplied too, and dropped. A line more, as strides that are powers of
  // two crowd the same sets of the caches.
  Transformed(int64_t channels, int64_t multiple, int64_t tiles)
      : groups((channels + multiple - 1) / multiple * (multiple / kConvLane)),
        step(tiles * kConvLane),
        stride(groups * step + kConvLane),
        values(16 * stride) {}

  float* at(int64_t q, int64_t group, int64_t tile) const {
    return values.data + q * stride + group * step + tile * kConvLane;
  }
};

}  // namespace

void conv3x3_weight_grad(const Conv3x3WeightGradArgs& a) {
  const Map x{a.x, a.n, a.h, a.w, a.c_in}, grad{a.grad, a.n, a.h, a.w, a.c_out};
  const int64_t tiles = x.tiles(), most = tiles < kTiles ? tiles : kTiles;
  const Transformed v(a.c_in, kInputs, most), e(a.c_out, kConvLane, most);
  const int64_t wide = v.groups * kConvLane / kInputs, blocks = wide * e.groups;
  // All that is summed is summed in this order, whatever the number of threads.
  const Scratch sums(tiles > most ? blocks * kBlock : 1);
  for (int64_t begin = 0; begin < tiles; begin += most) {
    const int64_t count = tiles - begin < most ? tiles - begin : most;
    const bool first = begin == 0, last = begin + count == tiles;
    const int64_t grain = 1 + 512 / (v.groups + e.groups);
    parallel_for(count, grain, [&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) {
        const Tile tile(x, begin + t);
        transform_input(x, tile, v.at(0, 0, t), v.step, v.stride);
        transform_gradient(grad, tile, e.at(0, 0, t), e.step, e.stride);
      }
    });
    parallel_for(blocks, 1, [&](int64_t from, int64_t to) {
      const Scratch own(tiles > most ? 1 : kBlock);
      for (int64_t block = from; block < to; ++block) {
        const int64_t c = block / e.groups * kInputs, group = block % e.groups;
        float* m = tiles > most ? sums.data + block * kBlock : own.data;
        for (int q = 0; q < 16; ++q) {
          for (int64_t t = 0; t < count; t += kRun) {
            const int64_t depth = count - t < kRun ? count - t : kRun;
            for (int column = 0; column < kInputs; column += kColumns) {
              const float* columns = v.at(q, (c + column) / kConvLane, t) + column % kConvLane;
              multiply_group(e.at(q, group, t), columns, v.step, depth,
                             m + q * kConvLane * kInputs + column, first && t == 0);
            }
          }
        }
        if (last) transform_sums(a, m, group * kConvLane, c);
      }
    });
  }
}

}  // namespace lddgan::LDDGAN_ISA
