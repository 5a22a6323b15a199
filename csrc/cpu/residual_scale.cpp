#include "lddgan/residual_scale.h"

#include "lddgan/parallel.h"
#include "lddgan/vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr float kInverseSqrt2 = 0.70710678118654752f;
constexpr int64_t kGrain = 16384;  // elements a thread; below, waking a thread costs more

template <typename T>
void run(const ResidualScaleArgs& a, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(a.x);
  const T* h = static_cast<const T*>(a.h);
  T* out = static_cast<T*>(a.out);
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) {
    store(out + i, (load(x + i) + load(h + i)) * kInverseSqrt2);
  }
  if (i < end) {
    int rest = int(end - i);
    store_tail(out + i, (load_tail(x + i, rest) + load_tail(h + i, rest)) * kInverseSqrt2, rest);
  }
}

}  // namespace

void residual_scale(const ResidualScaleArgs& a) {
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_for(a.count, kGrain, [&](int64_t begin, int64_t end) { run<T>(a, begin, end); });
  });
}

}  // namespace lddgan::LDDGAN_ISA
