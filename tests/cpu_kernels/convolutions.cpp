#include "cpu/conv3x3.h"

#include "compare.h"
#include "cpu/packed_conv2d.h"

namespace {

// Channels_last maps of odd and even sizes.
struct Maps {
  int64_t n, h, w, c_in, c_out, kernel;

  int64_t pixels() const { return n * h * w; }
  // f(pixel of the output, pixel of the input, tap)
  template <typename F>
  void each(const F& f) const {
    const int64_t half = kernel / 2;
    for (int64_t p = 0; p < pixels(); ++p) {
      for (int64_t i = 0; i < kernel; ++i) {
        for (int64_t j = 0; j < kernel; ++j) {
          const int64_t y = p / w % h + i - half, x = p % w + j - half;
          if (y < 0 || y >= h || x < 0 || x >= w) continue;
          f(p, p + (i - half) * w + j - half, i * kernel + j);
        }
      }
    }
  }
};

// weight(d, c, tap)
template <typename F>
std::vector<double> convolve(const Maps& m, const Array& x, const F& weight, const Array* bias,
                             const Array* residual) {
  std::vector<double> out(m.pixels() * m.c_out);
  for (int64_t i = 0; i < int64_t(out.size()); ++i) {
    out[i] = (bias ? (*bias)[i % m.c_out] : 0) + (residual ? (*residual)[i] : 0);
  }
  m.each([&](int64_t to, int64_t from, int64_t tap) {
    for (int64_t c = 0; c < m.c_in; ++c) {
      const double value = x[from * m.c_in + c];
      for (int64_t d = 0; d < m.c_out; ++d) out[to * m.c_out + d] += value * weight(d, c, tap);
    }
  });
  return out;
}

Maps draw_maps(Draw& draw, int64_t kernel) {
  return {draw.of({1, 1, 2, 3}),      draw.of({1, 2, 4, 5, 7, 8}), draw.of({1, 3, 4, 6, 9}),
          draw.of({16, 32, 48, 144}), draw.of({32, 64}),           kernel};
}

void winograd(Draw& draw) {
  const Maps m = draw_maps(draw, 3);
  const double scale = 1 / std::sqrt(9.0 * m.c_in);
  Array x = draw.array(Dtype::kFloat32, m.pixels() * m.c_in);
  Array weight = draw.array(Dtype::kFloat32, m.c_out * m.c_in * 9, scale);
  Array bias = draw.array(Dtype::kFloat32, m.c_out);
  Array residual = draw.array(Dtype::kFloat32, m.pixels() * m.c_out);
  Array packed(Dtype::kFloat32, m.c_out * m.c_in * 16);
  Array out(Dtype::kFloat32, m.pixels() * m.c_out);
  const bool with_bias = draw.flip(), with_residual = draw.flip();
  // Contiguous, or with the taps last but the channels the other way round.
  const bool turned = draw.flip();
  PackConv3x3Args pack{weight.as<float>(),      packed.as<float>(),       m.c_out, m.c_in,
                       turned ? 9 : 9 * m.c_in, turned ? 9 * m.c_out : 9, 3,       1};
  Conv3x3Args args{x.as<float>(),
                   packed.as<float>(),
                   with_bias ? bias.as<float>() : nullptr,
                   with_residual ? residual.as<float>() : nullptr,
                   out.as<float>(),
                   m.n,
                   m.h,
                   m.w,
                   m.c_in,
                   m.c_out};
  auto exact = convolve(
      m, x,
      [&](int64_t d, int64_t c, int64_t tap) {
        return weight[d * pack.stride_d + c * pack.stride_c + tap];
      },
      with_bias ? &bias : nullptr, with_residual ? &residual : nullptr);
  check(text("conv3x3", {m.n, m.h, m.w, m.c_in, m.c_out, with_bias, with_residual, turned}),
        [&](bool ours) {
          BOTH(pack_conv3x3, pack)(ours);
          BOTH(conv3x3, args)(ours);
        },
        {{&out, exact}});
}

void weight_gradient(Draw& draw) {
  Maps m = draw_maps(draw, 3);
  m.c_in = draw.of({1, 3, 16, 33, 64}), m.c_out = draw.of({1, 5, 32, 40});
  Array x = draw.array(Dtype::kFloat32, m.pixels() * m.c_in);
  Array grad = draw.array(Dtype::kFloat32, m.pixels() * m.c_out);
  Array out(Dtype::kFloat32, m.c_out * m.c_in * 9);
  const bool last = draw.flip();  // channels_last too
  Conv3x3WeightGradArgs args{x.as<float>(),
                             grad.as<float>(),
                             out.as<float>(),
                             m.n,
                             m.h,
                             m.w,
                             m.c_in,
                             m.c_out,
                             9 * m.c_in,
                             last ? 1 : 9,
                             last ? 3 * m.c_in : 3,
                             last ? m.c_in : 1};
  std::vector<double> exact(out.count);
  m.each([&](int64_t to, int64_t from, int64_t tap) {
    for (int64_t d = 0; d < m.c_out; ++d) {
      for (int64_t c = 0; c < m.c_in; ++c) {
        exact[d * args.stride_d + c * args.stride_c + tap / 3 * args.stride_i +
              tap % 3 * args.stride_j] += x[from * m.c_in + c] * grad[to * m.c_out + d];
      }
    }
  });
  check(text("conv3x3_weight_grad", {m.n, m.h, m.w, m.c_in, m.c_out, last}),
        BOTH(conv3x3_weight_grad, args), {{&out, exact}});
}

void direct(Draw& draw) {
  const Maps m = draw_maps(draw, draw.of({1, 3, 5}));
  const int64_t depth = m.kernel * m.kernel * m.c_in;
  Array x = draw.array(Dtype::kFloat32, m.pixels() * m.c_in);
  Array weight = draw.array(Dtype::kFloat32, m.c_out * depth, 1 / std::sqrt(double(depth)));
  Array bias = draw.array(Dtype::kFloat32, m.c_out);
  Array residual = draw.array(Dtype::kFloat32, m.pixels() * m.c_out);
  Array out(Dtype::kFloat32, m.pixels() * m.c_out);
  const bool with_bias = draw.flip(), with_residual = draw.flip();
  PackedConv2dArgs args{x.as<float>(),
                        weight.as<float>(),
                        with_bias ? bias.as<float>() : nullptr,
                        with_residual ? residual.as<float>() : nullptr,
                        out.as<float>(),
                        m.n,
                        m.h,
                        m.w,
                        m.c_in,
                        m.c_out,
                        m.kernel};
  auto exact = convolve(
      m, x,
      [&](int64_t d, int64_t c, int64_t tap) {
        return weight[(d / kConvPanel * depth + tap * m.c_in + c) * kConvPanel + d % kConvPanel];
      },
      with_bias ? &bias : nullptr, with_residual ? &residual : nullptr);
  check(text("packed_conv2d", {m.n, m.h, m.w, m.c_in, m.c_out, m.kernel, with_bias, with_residual}),
        BOTH(packed_conv2d, args), {{&out, exact}});
}

}  // namespace

void convolutions(Draw& draw, int count) {
  for (int i = 0; i < count; ++i) winograd(draw), weight_gradient(draw), direct(draw);
}
