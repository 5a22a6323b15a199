#include "lddgan/residual_scale.h"

#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr int64_t kGrain = 16384;  // elements a thread; below, waking a thread costs more

// Elements begin to end; bias(i, count) is that of `count` elements from begin + i on.
template <typename T, bool kThree, typename Bias>
LDDGAN_INLINE void run(const ResidualScaleArgs& a, int64_t begin, int64_t end, const Bias& bias) {
  const T* x = static_cast<const T*>(a.x);
  const T* h = static_cast<const T*>(a.h);
  const T* h2 = static_cast<const T*>(a.h2);
  T* out = static_cast<T*>(a.out);
  const float factor = a.factor;
  auto add = [&](int64_t i, int count) {
    Vec sum = load_up_to(x + i, count) + (load_up_to(h + i, count) + bias(i - begin, count));
    if constexpr (kThree) sum += load_up_to(h2 + i, count);
    store_up_to(out + i, sum * factor, count);
  };
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) add(i, kWidth);
  if (i < end) add(i, int(end - i));
}

template <typename T, bool kThree>
void run_all(const ResidualScaleArgs& a) {
  const float* bias = static_cast<const float*>(a.bias);
  if (!bias) {
    parallel_for(a.count, kGrain, [&](int64_t begin, int64_t end) {
      run<T, kThree>(a, begin, end, [](int64_t, int) { return Vec{}; });
    });
    return;
  }
  // Rows of one channel each, or of all channels.
  const int64_t length = a.inner == 1 ? a.channels : a.inner;
  parallel_for(a.count / length, kGrain / length + 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t begin = row * length, end = begin + length;
      if (a.inner == 1) {
        auto of = [&](int64_t i, int count) { return load_up_to(bias + i, count); };
        run<T, kThree>(a, begin, end, of);
      } else {
        const Vec one = broadcast(bias[row % a.channels]);
        run<T, kThree>(a, begin, end, [&](int64_t, int) { return one; });
      }
    }
  });
}

}  // namespace

void residual_scale(const ResidualScaleArgs& a) {
  if (a.count == 0) return;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    a.h2 ? run_all<T, true>(a) : run_all<T, false>(a);
  });
}

}  // namespace lddgan::LDDGAN_ISA
