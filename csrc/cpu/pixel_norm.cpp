#include "pixel_norm.h"

#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr float kEps = 1e-8f;
constexpr int64_t kGrain = 16384;  // elements a thread

template <typename T>
LDDGAN_INLINE float dot(const T* a, const T* b, int64_t length) {
  Vec total{};
  for (int64_t i = 0; i < length; i += kWidth) {
    int count = length - i < kWidth ? int(length - i) : kWidth;
    total += load_up_to(a + i, count) * load_up_to(b + i, count);
  }
  return sum(total);
}

template <typename T, bool kBackward>
void run(const PixelNormArgs& a) {
  const float share = 1.0f / float(a.length);
  parallel_for(a.rows, kGrain / a.length + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* z = static_cast<const T*>(a.z) + row * a.length;
      const T* grad = static_cast<const T*>(a.grad) + (kBackward ? row * a.length : 0);
      T* out = static_cast<T*>(a.out) + row * a.length;
      float factor = 1.0f / __builtin_sqrtf(dot(z, z, a.length) * share + kEps);
      // d out_i / d z_j = factor * (i == j) - factor^3 * z_i * z_j / length
      float along = kBackward ? dot(grad, z, a.length) * share * factor * factor : 0;
      for (int64_t i = 0; i < a.length; i += kWidth) {
        int count = a.length - i < kWidth ? int(a.length - i) : kWidth;
        Vec value = load_up_to(z + i, count);
        if constexpr (kBackward) value = load_up_to(grad + i, count) - value * along;
        store_up_to(out + i, value * factor, count);
      }
    }
  });
}

template <bool kBackward>
void dispatch(const PixelNormArgs& a) {
  visit(a.dtype, [&](auto* type) { run<std::remove_pointer_t<decltype(type)>, kBackward>(a); });
}

}  // namespace

void pixel_norm(const PixelNormArgs& a) { dispatch<false>(a); }

void pixel_norm_backward(const PixelNormArgs& a) { dispatch<true>(a); }

}  // namespace lddgan::LDDGAN_ISA
