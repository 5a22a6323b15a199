#include "lddgan/ada_group_norm.h"
#include "lddgan/norm_resample.h"

#include "compare.h"

namespace {

double silu(double u) { return u / (1 + std::exp(-u)); }

double silu_slope(double u) {
  const double s = 1 / (1 + std::exp(-u));
  return s * (1 + u * (1 - s));
}

// A drawn problem, and what it comes to.
struct Norm {
  const Dtype dtype;
  const int64_t samples, groups, size, channels2, channels, channels1, height, width, pixels;
  const bool last, silu, with_bias, one_row;
  Array x, x2, scale, shift, bias;
  Array mean, rstd;
  std::vector<double> means, rstds, deviation, u;  // [samples, channels, pixels] the last two

  Norm(Draw& draw, Dtype type, bool channels_last, bool extras)
      : dtype(type),
        samples(draw.of({1, 2, 3})),
        groups(draw.of({1, 2, 4, 8})),
        size(draw.of({1, 3, 4, 5, 16})),
        channels2(extras && draw.flip() && groups * size > 1 ? groups * size / 2 : 0),
        channels(groups * size),
        channels1(channels - channels2),
        height(draw.of({2, 5, 8, 16, 33})),
        width(draw.of({3, 7, 8, 16})),
        pixels(height * width),
        last(channels_last),
        silu(draw.flip()),
        with_bias(extras && draw.flip()),
        one_row(draw.flip()),
        x(draw.array(dtype, samples * channels1 * pixels, 1, draw.of({0, 0, 3}))),
        x2(draw.array(dtype, samples * channels2 * pixels, 2)),
        scale(draw.array(dtype, samples * channels)),
        shift(draw.array(dtype, samples * channels)),
        bias(draw.array(dtype, samples * channels1)),
        mean(Dtype::kFloat32, samples * groups),
        rstd(Dtype::kFloat32, samples * groups),
        deviation(samples * channels * pixels),
        u(samples * channels * pixels) {
    for (int64_t n = 0; n < samples; ++n) {
      for (int64_t g = 0; g < groups; ++g) take_group(n, g);
    }
  }

  int64_t at(int64_t n, int64_t c, int64_t p) const { return (n * channels + c) * pixels + p; }
  double row(const Array& rows, int64_t n, int64_t c) const {
    return rows[(one_row ? 0 : n) * channels + c];
  }
  // (array, index) of the element of x or x2.
  const Array& source(int64_t c) const { return c < channels1 ? x : x2; }
  int64_t place(int64_t n, int64_t c, int64_t p) const {
    return c < channels1 ? Layout{channels1, pixels, last}(n, c, p)
                         : Layout{channels2, pixels, last}(n, c - channels1, p);
  }

  void take_group(int64_t n, int64_t g) {
    auto each = [&](auto f) {
      for (int64_t c = g * size; c < (g + 1) * size; ++c) {
        for (int64_t p = 0; p < pixels; ++p) f(c, at(n, c, p), place(n, c, p));
      }
    };
    const double count = double(size * pixels);
    double total = 0, squares = 0;
    each([&](int64_t c, int64_t i, int64_t from) {
      deviation[i] = source(c)[from];
      if (with_bias && c < channels1) deviation[i] += bias[n * channels1 + c];
      total += deviation[i];
    });
    each([&](int64_t, int64_t i, int64_t) {
      deviation[i] -= total / count;
      squares += deviation[i] * deviation[i];
    });
    means.push_back(total / count);
    rstds.push_back(1 / std::sqrt(squares / count + 1e-6));
    mean.set(n * groups + g, means.back());
    rstd.set(n * groups + g, rstds.back());
    each([&](int64_t c, int64_t i, int64_t) {
      u[i] = row(scale, n, c) * deviation[i] * rstds.back() + row(shift, n, c);
    });
  }

  AdaGroupNormArgs args(Array& out) {
    const int64_t stride = one_row ? 0 : channels;
    AdaGroupNormArgs a{};
    a.x = x.data(), a.x2 = channels2 ? x2.data() : nullptr;
    a.scale = {scale.data(), stride, dtype}, a.shift = {shift.data(), stride, dtype};
    a.bias = {with_bias ? bias.data() : nullptr, channels1, dtype};
    a.out = out.data(), a.mean = mean.as<float>(), a.rstd = rstd.as<float>();
    a.samples = samples, a.channels1 = channels1, a.channels2 = channels2, a.pixels = pixels;
    a.groups = groups, a.eps = 1e-6f, a.dtype = dtype, a.channels_last = last, a.silu = silu;
    return a;
  }
  std::string name(const char* op) const {
    return text(op, {int(dtype), samples, groups, size, channels2, height, width, last, silu,
                     with_bias, one_row});
  }
};

void forward(Draw& draw) {
  Norm norm(draw, draw.dtype(), draw.flip(), true);
  Array out(norm.dtype, norm.samples * norm.channels * norm.pixels);
  const Layout layout{norm.channels, norm.pixels, norm.last};
  std::vector<double> exact(out.count);
  for (int64_t n = 0; n < norm.samples; ++n) {
    for (int64_t c = 0; c < norm.channels; ++c) {
      for (int64_t p = 0; p < norm.pixels; ++p) {
        const double u = norm.u[norm.at(n, c, p)];
        exact[layout(n, c, p)] = norm.silu ? silu(u) : u;
      }
    }
  }
  const AdaGroupNormArgs args = norm.args(out);
  check(norm.name("ada_group_norm_forward"), BOTH(ada_group_norm_forward, args),
        {{&out, exact}, {&norm.mean, norm.means}, {&norm.rstd, norm.rstds}});
}

void backward(Draw& draw) {
  Norm norm(draw, draw.dtype(), draw.flip(), true);
  const int64_t samples = norm.samples, channels = norm.channels, pixels = norm.pixels;
  const int64_t c1 = norm.channels1, c2 = norm.channels2;
  const Layout layout{channels, pixels, norm.last};
  Array grad = draw.array(norm.dtype, samples * channels * pixels);
  Array grad_x(norm.dtype, samples * c1 * pixels), grad_x2(norm.dtype, samples * c2 * pixels);
  Array grad_scale(norm.dtype, samples * channels), grad_shift(norm.dtype, samples * channels);
  Array grad_bias(norm.dtype, samples * c1);
  std::vector<double> x(grad_x.count), x2(grad_x2.count), bias(grad_bias.count);
  std::vector<double> scale(samples * channels), shift(samples * channels);
  for (int64_t n = 0; n < samples; ++n) {
    for (int64_t g = 0; g < norm.groups; ++g) {
      const double rstd = norm.rstds[n * norm.groups + g], count = double(norm.size * pixels);
      double k1 = 0, k2 = 0;
      auto each = [&](auto f) {
        for (int64_t c = g * norm.size; c < (g + 1) * norm.size; ++c) {
          for (int64_t p = 0; p < pixels; ++p) {
            const int64_t i = norm.at(n, c, p);
            const double v = grad[layout(n, c, p)] * (norm.silu ? silu_slope(norm.u[i]) : 1);
            f(c, p, v, norm.deviation[i] * rstd, norm.row(norm.scale, n, c));
          }
        }
      };
      each([&](int64_t c, int64_t, double v, double normal, double gamma) {
        shift[n * channels + c] += v;
        scale[n * channels + c] += v * normal;
        k1 += gamma * v / count, k2 += gamma * v * normal / count;
      });
      each([&](int64_t c, int64_t p, double v, double normal, double gamma) {
        const double value = rstd * (gamma * v - k1 - normal * k2);
        (c < c1 ? x : x2)[norm.place(n, c, p)] = value;
        if (c < c1) bias[n * c1 + c] += value;
      });
    }
  }
  AdaGroupNormBackwardArgs b{};
  Array none(norm.dtype, 0);
  b.forward = norm.args(none);
  b.grad_out = grad.data(), b.grad_x = grad_x.data();
  b.grad_x2 = c2 ? grad_x2.data() : nullptr;
  b.grad_scale = grad_scale.data(), b.grad_shift = grad_shift.data();
  b.grad_bias = norm.with_bias ? grad_bias.data() : nullptr;
  b.grad_scale_dtype = b.grad_shift_dtype = b.grad_bias_dtype = norm.dtype;
  std::vector<Output> outputs{{&grad_x, x}, {&grad_scale, scale}, {&grad_shift, shift}};
  if (c2) outputs.push_back({&grad_x2, x2});
  if (norm.with_bias && norm.size > 1) {  // else it is 0, and each error relative to that
    outputs.push_back({&grad_bias, bias});
  }
  check(norm.name("ada_group_norm_backward"), BOTH(ada_group_norm_backward, b), outputs);
}

// By two, with the taps [1, 3, 3, 1] / 8 along both axes; [samples, pixels, channels].
template <typename F>
std::vector<double> down(int64_t samples, int64_t channels, int64_t height, int64_t width,
                         const F& value) {
  const int64_t h = height / 2, w = width / 2;
  std::vector<double> out(samples * h * w * channels);
  for (int64_t i = 0; i < int64_t(out.size()); ++i) {
    const int64_t c = i % channels, x = i / channels % w, y = i / channels / w % h;
    const int64_t n = i / channels / w / h;
    for (int j = 0; j < 16; ++j) {
      const int64_t from_y = 2 * y - 1 + j / 4, from_x = 2 * x - 1 + j % 4;
      if (from_y < 0 || from_y >= height || from_x < 0 || from_x >= width) continue;
      out[i] +=
          value(n, c, from_y * width + from_x) * resample_weight(j / 4) * resample_weight(j % 4);
    }
  }
  return out;
}

void resampled_norm(Draw& draw) {
  Norm norm(draw, draw.dtype(), true, false);
  const int64_t channels = norm.channels, skip_channels = draw.of({3, 16, 20});
  const int64_t count = norm.samples * (norm.height / 2) * (norm.width / 2);
  Array skip = draw.array(norm.dtype, norm.samples * norm.pixels * skip_channels);
  Array out(norm.dtype, count * channels), skip_out(norm.dtype, count * skip_channels);
  NormResampleArgs args{norm.args(out), skip.data(), skip_out.data(), skip_channels, norm.height,
                        norm.width,     false};
  auto value = [&](int64_t n, int64_t c, int64_t p) {
    const double u = norm.u[norm.at(n, c, p)];
    return norm.silu ? silu(u) : u;
  };
  auto skipped = [&](int64_t n, int64_t c, int64_t p) {
    return skip[(n * norm.pixels + p) * skip_channels + c];
  };
  check(norm.name("norm_resample"), BOTH(norm_resample, args),
        {{&out, down(norm.samples, channels, norm.height, norm.width, value)},
         {&skip_out, down(norm.samples, skip_channels, norm.height, norm.width, skipped)}});
}

}  // namespace

void norms(Draw& draw, int count) {
  for (int i = 0; i < count; ++i) forward(draw), backward(draw), resampled_norm(draw);
}
