#include "lddgan/diffuse_pair.h"
#include "lddgan/philox.h"
#include "lddgan/posterior_sample.h"

#include "compare.h"

namespace {

constexpr int64_t kSteps = 4;

// The definition (lddgan_kernels/ops/_philox.py): element i of a sample, in (channel, pixel) order.
double normal_of(int64_t seed, uint32_t stream, uint32_t step, int64_t i) {
  uint32_t words[4] = {uint32_t(i / 4), stream, step, 0};
  philox4x32(words, uint32_t(seed), uint32_t(uint64_t(seed) >> 32));
  float first, second;
  const int pair = i % 4 / 2 * 2;
  box_muller<ScalarMath>(words[pair], words[pair + 1], first, second);
  return i % 2 ? second : first;
}

struct Problem {
  const Dtype dtype;
  const Batch batch;
  const Layout layout;
  const uint32_t step;
  std::vector<int64_t> seeds, t;

  explicit Problem(Draw& draw)
      : dtype(draw.dtype()),
        batch{draw.of({1, 2, 3}), draw.of({1, 3, 4, 5, 16}), draw.of({1, 9, 64, 257, 1024}),
              draw.flip()},
        layout{batch.channels, batch.pixels, batch.channels_last},
        step(draw.word() % 5) {
    for (int64_t n = 0; n < batch.samples; ++n) {
      seeds.push_back(int64_t(uint64_t(draw.word()) << 33) - draw.word());
      t.push_back(draw.word() % kSteps);
    }
  }
  int64_t size() const { return batch.channels * batch.pixels; }
  int64_t count() const { return batch.samples * size(); }
  std::vector<double> noise(uint32_t stream) const {
    std::vector<double> all(count());
    for (int64_t n = 0; n < batch.samples; ++n) {
      for (int64_t i = 0; i < size(); ++i) {
        all[layout(n, i / batch.pixels, i % batch.pixels)] = normal_of(seeds[n], stream, step, i);
      }
    }
    return all;
  }
  std::string name(const char* op, bool seeded) const {
    return text(
        op, {int(dtype), batch.samples, batch.channels, batch.pixels, batch.channels_last, seeded});
  }
};

// `noise` of a stream, or given: then as stored in `array`.
std::vector<double> made_or_given(const Problem& p, bool seeded, uint32_t stream, Array& array) {
  std::vector<double> values = p.noise(stream);
  for (int64_t i = 0; i < p.count(); ++i) {
    array.set(i, values[i]);
    if (!seeded) values[i] = array[i];
  }
  return values;
}

void normals(Draw& draw) {
  Problem p(draw);
  Array out(Dtype::kFloat32, p.count());
  SeededNormalArgs args{p.seeds.data(), out.data(), p.batch, 7, p.step, Dtype::kFloat32};
  const std::vector<double> exact = p.noise(7);
  LDDGAN_TESTED::seeded_normal(args);
  for (int64_t i = 0; i < p.count(); ++i) {
    if (std::fabs(out[i] - exact[i]) <= 2e-6) continue;  // docs/guarantees.md
    return fail(p.name("seeded_normal", true) + text(": element", {i}));
  }
  if (!out.is_guarded()) fail(p.name("seeded_normal", true) + ": wrote outside its output");
}

void diffusion(Draw& draw) {
  Problem p(draw);
  const bool seeded = draw.flip();
  Array a_s = draw.array(Dtype::kFloat32, kSteps + 1), sigmas = draw.array(a_s.dtype, kSteps + 1);
  Array a_s_cum = draw.array(a_s.dtype, kSteps + 1);
  Array sigmas_cum = draw.array(a_s.dtype, kSteps + 1);
  sigmas_cum.set(0, 0);
  Array x0 = draw.array(p.dtype, p.count()), noise_t(p.dtype, p.count());
  Array noise_next(p.dtype, p.count()), x_t(p.dtype, p.count()), x_next(p.dtype, p.count());
  const auto now = made_or_given(p, seeded, 1, noise_t);
  const auto next = made_or_given(p, seeded, 2, noise_next);
  std::vector<double> exact_t(p.count()), exact_next(p.count());
  for (int64_t i = 0; i < p.count(); ++i) {
    const int64_t t = p.t[i / p.size()];
    exact_t[i] = x0[i] * a_s_cum[t] + now[i] * sigmas_cum[t];
    exact_next[i] = exact_t[i] * a_s[t + 1] + next[i] * sigmas[t + 1];
  }
  DiffusePairArgs args{x0.data(),
                       p.t.data(),
                       a_s.as<float>(),
                       sigmas.as<float>(),
                       a_s_cum.as<float>(),
                       sigmas_cum.as<float>(),
                       seeded ? p.seeds.data() : nullptr,
                       noise_t.data(),
                       noise_next.data(),
                       x_t.data(),
                       x_next.data(),
                       p.batch,
                       kSteps,
                       1,
                       2,
                       p.step,
                       p.dtype};
  check(p.name("diffuse_pair", seeded), BOTH(diffuse_pair, args),
        {{&x_t, exact_t}, {&x_next, exact_next}});
}

void posterior(Draw& draw) {
  Problem p(draw);
  const bool seeded = draw.flip();
  Array coef1 = draw.array(Dtype::kFloat32, kSteps), coef2 = draw.array(coef1.dtype, kSteps);
  Array log_variance = draw.array(coef1.dtype, kSteps);
  Array x0 = draw.array(p.dtype, p.count()), x_next = draw.array(p.dtype, p.count());
  Array noise(p.dtype, p.count()), out(p.dtype, p.count()), grad_next(p.dtype, p.count());
  const auto made = made_or_given(p, seeded, 3, noise);
  std::vector<double> exact(p.count()), grad_x0(p.count()), grad_x_next(p.count());
  for (int64_t i = 0; i < p.count(); ++i) {
    const int64_t t = p.t[i / p.size()];
    grad_x0[i] = x0[i] * coef1[t], grad_x_next[i] = x0[i] * coef2[t];
    exact[i] = grad_x0[i] + x_next[i] * coef2[t];
    if (t > 0) exact[i] += made[i] * std::exp(0.5 * log_variance[t]);
  }
  PosteriorSampleArgs args{x0.data(),
                           x_next.data(),
                           p.t.data(),
                           coef1.as<float>(),
                           coef2.as<float>(),
                           log_variance.as<float>(),
                           seeded ? p.seeds.data() : nullptr,
                           noise.data(),
                           out.data(),
                           p.batch,
                           kSteps,
                           3,
                           p.step,
                           p.dtype};
  check(p.name("posterior_sample", seeded), BOTH(posterior_sample, args), {{&out, exact}});
  PosteriorSampleBackwardArgs b{x0.data(),  p.t.data(),       coef1.as<float>(), coef2.as<float>(),
                                out.data(), grad_next.data(), p.batch.samples,   p.size(),
                                kSteps,     p.dtype};
  check(p.name("posterior_sample_backward", seeded), BOTH(posterior_sample_backward, b),
        {{&out, grad_x0}, {&grad_next, grad_x_next}});
}

}  // namespace

void noise(Draw& draw, int count) {
  for (int i = 0; i < count; ++i) normals(draw), diffusion(draw), posterior(draw);
}
