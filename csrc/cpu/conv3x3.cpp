// Winograd F(2x2, 3x3) (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks"):
// Y = A' [ sum over channels of (G g G') . (B' d B) ] A, with 16 instead of 36 multiplications for
// four outputs. Tiles are transformed into 16 matrices, multiplied with one panel of output
// channels at a time, and the result is transformed while it is in the cache (panels.h).
#include "conv3x3_tiles.h"
#include "panels.h"

namespace lddgan::LDDGAN_ISA {

namespace {

// A' m A of one tile and a panel of output channels from `channel`, plus bias and residual.
template <int kRows>
void transform_output(const Conv3x3Args& a, const Tile& t, const float* m, int64_t channel) {
  constexpr int kStride = kRows * kConvPanel;
  for (int lane = 0; lane < kConvPanel; lane += kWidth, m += kWidth) {
    Vec rows[8];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Vec m1 = load(m + (4 + j) * kStride), m2 = load(m + (8 + j) * kStride);
      rows[j] = load(m + j * kStride) + m1 + m2;
      rows[4 + j] = m1 - m2 - load(m + (12 + j) * kStride);
    }
    Vec bias = a.bias ? load(a.bias + channel + lane) : Vec{};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      int64_t y = t.y + i / 2, x = t.x + i % 2;
      if (y >= a.h || x >= a.w) continue;
      const Vec* r = rows + i / 2 * 4;
      Vec value = i % 2 == 0 ? r[0] + r[1] + r[2] : r[1] - r[2] - r[3];
      int64_t to = ((t.image * a.h + y) * a.w + x) * a.c_out + channel + lane;
      value += bias;
      if (a.residual) value += load(a.residual + to);
      store(a.out + to, value);
    }
  }
}

struct Winograd {
  static constexpr int kCount = 16;
  const Conv3x3Args& a;
  const Map map;
  const int64_t rows, depth, columns;
  const float* weight;

  explicit Winograd(const Conv3x3Args& args)
      : a(args),
        map{args.x, args.n, args.h, args.w, args.c_in},
        rows(map.tiles()),
        depth(args.c_in),
        columns(args.c_out),
        weight(args.weight) {}

  template <int kRows>
  void in(int64_t row, float* to, int64_t stride) const {
    transform_input(map, Tile(map, row), to, kRows * kConvLane, stride);
  }

  template <int kRows>
  void out(int64_t row, const float* m, int64_t channel) const {
    transform_output<kRows>(a, Tile(map, row), m, channel);
  }
};

// One input channel against a panel of output channels.
void pack(const PackConv3x3Args& a, int64_t panel, int64_t c) {
  alignas(64) float taps[9][kConvPanel];
  const float* from = a.weight + panel * kConvPanel * a.stride_d + c * a.stride_c;
  for (int d = 0; d < kConvPanel; ++d, from += a.stride_d) {
    for (int i = 0; i < 9; ++i) taps[i][d] = from[i / 3 * a.stride_i + i % 3 * a.stride_j];
  }
  float* to = a.packed + (panel * 16 * a.c_in + c) * kConvPanel;
  const int64_t stride = a.c_in * kConvPanel;
  for (int lane = 0; lane < kConvPanel; lane += kWidth, to += kWidth) {
    Vec rows[12];
    for (int j = 0; j < 3; ++j) {
      Vec g0 = load(taps[j] + lane), g1 = load(taps[3 + j] + lane), g2 = load(taps[6 + j] + lane);
      rows[j] = g0;
      rows[3 + j] = (g0 + g1 + g2) * 0.5f;
      rows[6 + j] = (g0 - g1 + g2) * 0.5f;
      rows[9 + j] = g2;
    }
    for (int i = 0; i < 4; ++i) {
      const Vec* r = rows + 3 * i;
      store(to + (4 * i) * stride, r[0]);
      store(to + (4 * i + 1) * stride, (r[0] + r[1] + r[2]) * 0.5f);
      store(to + (4 * i + 2) * stride, (r[0] - r[1] + r[2]) * 0.5f);
      store(to + (4 * i + 3) * stride, r[2]);
    }
  }
}

}  // namespace

void conv3x3(const Conv3x3Args& a) { multiply_all(Winograd(a)); }

void pack_conv3x3(const PackConv3x3Args& a) {
  parallel_for(a.c_out / kConvPanel * a.c_in, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack(a, i / a.c_in, i % a.c_in);
  });
}

}  // namespace lddgan::LDDGAN_ISA
