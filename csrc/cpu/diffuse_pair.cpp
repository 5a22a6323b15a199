#include "lddgan/diffuse_pair.h"

#include "lddgan/normal.h"

namespace lddgan::LDDGAN_ISA {

namespace {

struct Coefficients {
  float a_cum, sigma_cum, a, sigma;
};

// `Noise` is float (made here) or T (given).
template <typename T, typename Noise>
void combine(const T* x0, const Noise* noise_t, const Noise* noise_next, T* x_t, T* x_next,
             int64_t count, const Coefficients& c) {
  for (int64_t i = 0; i < count; i += kWidth) {
    int rest = int(count - i);
    if (rest >= kWidth) {
      Vec diffused = load(x0 + i) * c.a_cum + load(noise_t + i) * c.sigma_cum;
      store(x_t + i, diffused);
      store(x_next + i, diffused * c.a + load(noise_next + i) * c.sigma);
    } else {
      Vec diffused = load_tail(x0 + i, rest) * c.a_cum + load_tail(noise_t + i, rest) * c.sigma_cum;
      store_tail(x_t + i, diffused, rest);
      store_tail(x_next + i, diffused * c.a + load_tail(noise_next + i, rest) * c.sigma, rest);
    }
  }
}

}  // namespace

void diffuse_pair(const DiffusePairArgs& a) {
  int64_t size = a.batch.channels * a.batch.pixels;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_chunk(a.batch, 2, [&](NoiseBuffer& buffer, int64_t n, int64_t begin, int64_t end) {
      int64_t t = a.t[n], at = n * size + begin, count = end - begin;
      const T* x0 = static_cast<const T*>(a.x0) + at;
      T* x_t = static_cast<T*>(a.x_t) + at;
      T* x_next = static_cast<T*>(a.x_next) + at;
      Coefficients c = {a.a_s_cum[t], a.sigmas_cum[t], a.a_s[t + 1], a.sigmas[t + 1]};
      if (a.seeds == nullptr) {
        combine(x0, static_cast<const T*>(a.noise_t) + at, static_cast<const T*>(a.noise_next) + at,
                x_t, x_next, count, c);
        return;
      }
      PhiloxStream next(a.seeds[n], a.stream_next, a.step);
      const float* noise_next = buffer.fill(1, next, begin, end);
      const float* noise_t = noise_next;
      if (t > 0) {  // x_0 itself has no noise: sigmas_cum[0] is 0
        noise_t = buffer.fill(0, PhiloxStream(a.seeds[n], a.stream_t, a.step), begin, end);
      }
      combine(x0, noise_t, noise_next, x_t, x_next, count, c);
    });
  });
}

}  // namespace lddgan::LDDGAN_ISA
