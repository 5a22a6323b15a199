#include "lddgan/diffuse_pair.h"

#include "normal.h"

namespace lddgan::LDDGAN_ISA {

void diffuse_pair(const DiffusePairArgs& a) {
  int64_t size = a.batch.channels * a.batch.pixels;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_chunk(a.batch, 2, [&](NoiseSource& source, int64_t n, int64_t begin, int64_t end) {
      int64_t t = a.t[n], at = n * size + begin;
      const T* x0 = static_cast<const T*>(a.x0) + at;
      const T* given_t = static_cast<const T*>(a.noise_t) + at;
      const T* given_next = static_cast<const T*>(a.noise_next) + at;
      T* x_t = static_cast<T*>(a.x_t) + at;
      T* x_next = static_cast<T*>(a.x_next) + at;
      float a_cum = a.a_s_cum[t], sigma_cum = a.sigmas_cum[t];
      float a_next = a.a_s[t + 1], sigma_next = a.sigmas[t + 1];
      auto combine = [&](int64_t i, Vec noise_t, Vec noise_next, auto count) {
        Vec diffused = load(x0 + i, count) * a_cum + noise_t * sigma_cum;
        store(x_t + i, diffused, count);
        store(x_next + i, diffused * a_next + noise_next * sigma_next, count);
      };
      if (a.seeds == nullptr) {
        for_vectors(end - begin, [&](int64_t i, auto count) {
          combine(i, load(given_t + i, count), load(given_next + i, count), count);
        });
        return;
      }
      PhiloxStream now(a.seeds[n], a.stream_t, a.step), next(a.seeds[n], a.stream_next, a.step);
      if (t == 0) {  // x_0 itself has no noise: sigmas_cum[0] is 0
        PhiloxStream streams[1] = {next};
        source.each(streams, begin, end, [&](int64_t i, const Vec(&noise)[1], auto count) {
          combine(i, Vec{}, noise[0], count);
        });
      } else {
        PhiloxStream streams[2] = {now, next};
        source.each(streams, begin, end, [&](int64_t i, const Vec(&noise)[2], auto count) {
          combine(i, noise[0], noise[1], count);
        });
      }
    });
  });
}

}  // namespace lddgan::LDDGAN_ISA
