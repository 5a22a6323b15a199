// Direct convolution of small maps: each pixel's neighbourhood is copied into a row of a matrix,
// which is multiplied with the packed weights (panels.h).
#include "packed_conv2d.h"

#include "panels.h"

namespace lddgan::LDDGAN_ISA {

namespace {

struct Direct {
  static constexpr int kCount = 1;
  const PackedConv2dArgs& a;
  const int64_t rows, depth, columns;
  const float* weight;

  explicit Direct(const PackedConv2dArgs& args)
      : a(args),
        rows(args.n * args.h * args.w),
        depth(args.kernel * args.kernel * args.c_in),
        columns(args.c_out),
        weight(args.weight) {}

  template <int kRows>
  void in(int64_t row, float* to, int64_t) const {
    const int64_t y = row / a.w % a.h, x = row % a.w, half = a.kernel / 2;
    for (int64_t i = -half; i <= half; ++i) {
      for (int64_t j = -half; j <= half; ++j) {
        const bool valid = y + i >= 0 && y + i < a.h && x + j >= 0 && x + j < a.w;
        const float* from = a.x + (row + i * a.w + j) * a.c_in;
        for (int64_t c = 0; c < a.c_in; c += kConvLane, to += kRows * kConvLane) {
          for (int lane = 0; lane < kConvLane; lane += kWidth) {
            store(to + lane, valid ? load(from + c + lane) : Vec{});
          }
        }
      }
    }
  }

  template <int kRows>
  void out(int64_t row, const float* m, int64_t channel) const {
    const int64_t to = row * a.c_out + channel;
    for (int lane = 0; lane < kConvPanel; lane += kWidth) {
      Vec value = load(m + lane);
      if (a.bias) value += load(a.bias + channel + lane);
      if (a.residual) value += load(a.residual + to + lane);
      store(a.out + to + lane, value);
    }
  }
};

}  // namespace

void packed_conv2d(const PackedConv2dArgs& a) { multiply_all(Direct(a)); }

}  // namespace lddgan::LDDGAN_ISA
