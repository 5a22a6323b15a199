#include "lddgan/posterior_sample.h"

#include "normal.h"

namespace lddgan::LDDGAN_ISA {

namespace {

template <typename T>
void scale_twice(const T* grad, T* first, T* second, int64_t count, float c1, float c2) {
  for_vectors(count, [&](int64_t i, auto rest) {
    Vec g = load(grad + i, rest);
    store(first + i, g * c1, rest);
    store(second + i, g * c2, rest);
  });
}

}  // namespace

void posterior_sample(const PosteriorSampleArgs& a) {
  int64_t size = a.batch.channels * a.batch.pixels;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_chunk(a.batch, 1, [&](NoiseSource& source, int64_t n, int64_t begin, int64_t end) {
      int64_t t = a.t[n], at = n * size + begin;
      const T* x0 = static_cast<const T*>(a.x0) + at;
      const T* x_next = static_cast<const T*>(a.x_next) + at;
      const T* given = static_cast<const T*>(a.noise) + at;
      T* out = static_cast<T*>(a.out) + at;
      float c1 = a.coef1[t], c2 = a.coef2[t], deviation = __builtin_expf(0.5f * a.log_variance[t]);
      auto mean = [&](int64_t i, auto count) {
        return load(x0 + i, count) * c1 + load(x_next + i, count) * c2;
      };
      if (t == 0) {
        for_vectors(end - begin,
                    [&](int64_t i, auto count) { store(out + i, mean(i, count), count); });
      } else if (a.seeds == nullptr) {
        for_vectors(end - begin, [&](int64_t i, auto count) {
          store(out + i, mean(i, count) + load(given + i, count) * deviation, count);
        });
      } else {
        PhiloxStream streams[1] = {{a.seeds[n], a.stream, a.step}};
        source.each(streams, begin, end, [&](int64_t i, const Vec(&noise)[1], auto count) {
          store(out + i, mean(i, count) + noise[0] * deviation, count);
        });
      }
    });
  });
}

void posterior_sample_backward(const PosteriorSampleBackwardArgs& a) {
  constexpr int64_t kChunk = 4096, kGrain = 16384;  // elements at once; elements a thread
  if (a.size == 0) return;
  int64_t chunk = a.size < kChunk ? a.size : kChunk, chunks = (a.size + chunk - 1) / chunk;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_for(a.samples * chunks, (kGrain + chunk - 1) / chunk, [&](int64_t i, int64_t last) {
      for (; i < last; ++i) {
        int64_t n = i / chunks, begin = i % chunks * chunk, at = n * a.size + begin, t = a.t[n];
        scale_twice(static_cast<const T*>(a.grad) + at, static_cast<T*>(a.grad_x0) + at,
                    static_cast<T*>(a.grad_x_next) + at,
                    a.size - begin < chunk ? a.size - begin : chunk, a.coef1[t], a.coef2[t]);
      }
    });
  });
}

}  // namespace lddgan::LDDGAN_ISA
