#include "cpu/bias_act.h"
#include "cpu/minibatch_stddev.h"
#include "cpu/pixel_norm.h"
#include "lddgan/haar.h"
#include "lddgan/residual_scale.h"

#include "compare.h"

namespace {

void residual(Draw& draw) {
  const Dtype dtype = draw.dtype();
  const int64_t channels = draw.of({1, 3, 16, 35}), pixels = draw.of({1, 7, 64, 1000});
  const Layout layout{channels, pixels, draw.flip()};
  const int64_t count = 2 * channels * pixels;
  Array x = draw.array(dtype, count), h = draw.array(dtype, count), h2 = draw.array(dtype, count);
  Array bias = draw.array(Dtype::kFloat32, channels), out(dtype, count);
  const bool three = draw.flip(), with_bias = draw.flip();
  const float factor = float(std::sqrt(0.5));
  ResidualScaleArgs args{x.data(),
                         h.data(),
                         three ? h2.data() : nullptr,
                         with_bias ? bias.data() : nullptr,
                         out.data(),
                         count,
                         channels,
                         layout.channels_last ? 1 : pixels,
                         factor,
                         dtype,
                         Dtype::kFloat32};
  std::vector<double> exact(count);
  for (int64_t i = 0; i < count; ++i) {
    exact[i] = x[i] + h[i] + (three ? h2[i] : 0);
    if (with_bias) exact[i] += bias[i / args.inner % channels];
    exact[i] *= factor;
  }
  check(text("residual_scale", {int(dtype), channels, pixels, args.inner, three, with_bias}),
        BOTH(residual_scale, args), {{&out, exact}});
}

void bias_activation(Draw& draw) {
  const Dtype dtype = draw.dtype();
  const int64_t images = draw.of({1, 3}), channels = draw.of({1, 5, 32}),
                plane = draw.of({1, 9, 130});
  const bool last = draw.flip(), silu = draw.flip();
  const Layout layout{channels, plane, last};
  const int64_t count = images * channels * plane;
  Array x = draw.array(dtype, count, 4), grad = draw.array(dtype, count);
  Array bias = draw.array(Dtype::kFloat32, channels), out(dtype, count), grad_x(dtype, count);
  Array grad_bias(Dtype::kFloat32, channels);
  Array partial(Dtype::kFloat32, bias_act_chunks(images, plane, last) * channels);
  std::vector<double> exact(count), exact_x(count), exact_bias(channels);
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < plane; ++p) {
        const int64_t i = layout(n, c, p);
        const double u = x[i] + bias[c], s = 1 / (1 + std::exp(-u));
        exact[i] = silu ? u * s : u > 0 ? u : 0.2 * u;
        exact_x[i] = grad[i] * (silu ? s * (1 + u * (1 - s)) : u > 0 ? 1 : 0.2);
        exact_bias[c] += exact_x[i];
      }
    }
  }
  const std::string name = text("", {int(dtype), images, channels, plane, last, silu});
  BiasActArgs args{x.data(), bias.as<float>(), out.data(), images, channels, plane, last, silu,
                   dtype};
  check("bias_act" + name, BOTH(bias_act, args), {{&out, exact}});
  BiasActBackwardArgs b{grad.data(),
                        x.data(),
                        bias.as<float>(),
                        grad_x.data(),
                        grad_bias.as<float>(),
                        partial.as<float>(),
                        images,
                        channels,
                        plane,
                        last,
                        silu,
                        dtype};
  check("bias_act_backward" + name, BOTH(bias_act_backward, b),
        {{&grad_x, exact_x}, {&grad_bias, exact_bias}});
}

void rows(Draw& draw) {
  const Dtype dtype = draw.dtype();
  const int64_t count = draw.of({1, 5, 40}), length = draw.of({2, 25, 50, 128});
  Array z = draw.array(dtype, count * length), grad = draw.array(dtype, count * length);
  Array out(dtype, count * length);
  std::vector<double> exact(out.count), slope(out.count);
  for (int64_t row = 0; row < count; ++row) {
    double squares = 0, along = 0;
    for (int64_t i = row * length; i < (row + 1) * length; ++i) {
      squares += z[i] * z[i] / double(length), along += z[i] * grad[i] / double(length);
    }
    const double factor = 1 / std::sqrt(squares + 1e-8);
    for (int64_t i = row * length; i < (row + 1) * length; ++i) {
      exact[i] = z[i] * factor;
      slope[i] = factor * (grad[i] - z[i] * along * factor * factor);
    }
  }
  const std::string name = text("", {int(dtype), count, length});
  PixelNormArgs args{z.data(), grad.data(), out.data(), count, length, dtype};
  check("pixel_norm" + name, BOTH(pixel_norm, args), {{&out, exact}});
  check("pixel_norm_backward" + name, BOTH(pixel_norm_backward, args), {{&out, slope}});
}

void wavelet(Draw& draw) {
  const Dtype dtype = draw.dtype();
  const int64_t n = draw.of({1, 2}), c = draw.of({1, 3, 16, 20}), h = draw.of({1, 3, 8});
  const int64_t w = draw.of({1, 3, 4, 16, 21}), count = n * c * h * w;
  const bool last = draw.flip();
  const Layout image{c, 4 * h * w, last}, bands{4 * c, h * w, last};
  const float scale = draw.flip() ? 1 : 0.5f;
  Array in = draw.array(dtype, 4 * count), out(dtype, 4 * count);
  std::vector<double> forward(4 * count), inverse(4 * count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t x = i % w, y = i / w % h, channel = i / w / h % c, sample = i / w / h / c;
    for (int band = 0; band < 4; ++band) {
      for (int corner = 0; corner < 4; ++corner) {
        const int64_t from =
            image(sample, channel, (2 * y + corner / 2) * 2 * w + 2 * x + corner % 2);
        const int64_t to = bands(sample, band * c + channel, y * w + x);
        const int flips = (band & corner & 1) + (band & corner) / 2;  // LL, LH, HL, HH
        const double sign = flips % 2 ? -0.5 : 0.5;
        forward[to] += in[from] * sign * scale;
        inverse[from] += in[to] * sign * scale;
      }
    }
  }
  HaarArgs args{in.data(), out.data(), n, c, h, w, scale, last, dtype};
  const std::string name = text("", {int(dtype), n, c, h, w, last});
  check("haar_dwt2d" + name, BOTH(haar_dwt2d, args), {{&out, forward}});
  check("haar_idwt2d" + name, BOTH(haar_idwt2d, args), {{&out, inverse}});
}

void statistic(Draw& draw) {
  const Dtype dtype = draw.dtype();
  const int64_t members = draw.of({2, 3, 4}), sets = draw.of({1, 2}),
                channels = draw.of({3, 16, 33});
  const int64_t plane = draw.of({4, 16, 100}), samples = members * sets;
  const bool last = draw.flip();
  const Layout narrow{channels, plane, last}, wide{channels + 1, plane, last};
  Array x = draw.array(dtype, samples * channels * plane, 1, draw.of({0, 2}));
  Array grad = draw.array(dtype, samples * (channels + 1) * plane);
  Array out(dtype, grad.count), grad_x(dtype, x.count);
  std::vector<double> partial(sets * minibatch_stddev_rows(channels, plane, last));
  std::vector<double> exact(out.count), slope(x.count);
  const double size = double(channels * plane);
  for (int64_t set = 0; set < sets; ++set) {
    double total = 0, above = 0;
    for (int64_t m = 0; m < members; ++m) {
      for (int64_t p = 0; p < plane; ++p) above += grad[wide(m * sets + set, channels, p)];
    }
    for (int64_t i = 0; i < channels * plane; ++i) {
      auto at = [&](int64_t m) { return narrow(m * sets + set, i / plane, i % plane); };
      double mean = 0, variance = 0;
      for (int64_t m = 0; m < members; ++m) mean += x[at(m)] / double(members);
      for (int64_t m = 0; m < members; ++m) variance += std::pow(x[at(m)] - mean, 2);
      const double deviation = std::sqrt(variance / double(members) + 1e-8);
      total += deviation;
      for (int64_t m = 0; m < members; ++m) {
        const int64_t to = wide(m * sets + set, i / plane, i % plane);
        exact[to] = x[at(m)];
        slope[at(m)] = grad[to] + above * (x[at(m)] - mean) / (deviation * double(members) * size);
      }
    }
    for (int64_t m = 0; m < members; ++m) {
      for (int64_t p = 0; p < plane; ++p) {
        exact[wide(m * sets + set, channels, p)] = total / size;
      }
    }
  }
  MinibatchStddevArgs args{x.data(), grad.data(), out.data(), partial.data(), members,
                           sets,     channels,    plane,      last,           dtype};
  const std::string name = text("", {int(dtype), members, sets, channels, plane, last});
  check("minibatch_stddev" + name, BOTH(minibatch_stddev, args), {{&out, exact}});
  args.out = grad_x.data();
  check("minibatch_stddev_backward" + name, BOTH(minibatch_stddev_backward, args),
        {{&grad_x, slope}});
}

}  // namespace

void elementwise(Draw& draw, int count) {
  for (int i = 0; i < count; ++i) {
    residual(draw), bias_activation(draw), rows(draw), wavelet(draw), statistic(draw);
  }
}
