#include "lddgan/posterior_sample.h"

#include "lddgan/normal.h"

namespace lddgan::LDDGAN_ISA {

namespace {

// `Noise` is float (made here) or T (given).
template <typename T, typename Noise>
void combine(const T* x0, const T* x_next, const Noise* noise, T* out, int64_t count, float c1,
             float c2, float deviation) {
  for (int64_t i = 0; i < count; i += kWidth) {
    int rest = int(count - i);
    if (rest >= kWidth) {
      store(out + i, load(x0 + i) * c1 + load(x_next + i) * c2 + load(noise + i) * deviation);
    } else {
      store_tail(out + i,
                 load_tail(x0 + i, rest) * c1 + load_tail(x_next + i, rest) * c2 +
                     load_tail(noise + i, rest) * deviation,
                 rest);
    }
  }
}

template <typename T>
void mean_only(const T* x0, const T* x_next, T* out, int64_t count, float c1, float c2) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    store(out + i, load(x0 + i) * c1 + load(x_next + i) * c2);
  }
  if (i < count) {
    int rest = int(count - i);
    store_tail(out + i, load_tail(x0 + i, rest) * c1 + load_tail(x_next + i, rest) * c2, rest);
  }
}

template <typename T>
void scale_twice(const T* grad, T* first, T* second, int64_t count, float c1, float c2) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    Vec g = load(grad + i);
    store(first + i, g * c1);
    store(second + i, g * c2);
  }
  if (i < count) {
    int rest = int(count - i);
    Vec g = load_tail(grad + i, rest);
    store_tail(first + i, g * c1, rest);
    store_tail(second + i, g * c2, rest);
  }
}

}  // namespace

void posterior_sample(const PosteriorSampleArgs& a) {
  int64_t size = a.batch.channels * a.batch.pixels;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_chunk(a.batch, 1, [&](NoiseBuffer& buffer, int64_t n, int64_t begin, int64_t end) {
      int64_t t = a.t[n], at = n * size + begin, count = end - begin;
      const T* x0 = static_cast<const T*>(a.x0) + at;
      const T* x_next = static_cast<const T*>(a.x_next) + at;
      T* out = static_cast<T*>(a.out) + at;
      float c1 = a.coef1[t], c2 = a.coef2[t], deviation = __builtin_expf(0.5f * a.log_variance[t]);
      if (t == 0) {
        mean_only(x0, x_next, out, count, c1, c2);
      } else if (a.seeds == nullptr) {
        const T* noise = static_cast<const T*>(a.noise) + at;
        combine(x0, x_next, noise, out, count, c1, c2, deviation);
      } else {
        const float* noise = buffer.fill(0, PhiloxStream(a.seeds[n], a.stream, a.step), begin, end);
        combine(x0, x_next, noise, out, count, c1, c2, deviation);
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
