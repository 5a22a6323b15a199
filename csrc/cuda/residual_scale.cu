#include "lddgan/residual_scale.h"

#include <algorithm>
#include <numeric>

#include "cuda.cuh"

namespace lddgan {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kLargest = 1LL << 31;  // elements of a launch

template <typename T, typename B>
struct Pointers {
  const T* x;
  const T* h;
  const T* h2;
  const B* bias;
  T* out;
};

// Adds the bias of elements first to first + size to `values`. 32 bits: a 64-bit division costs as
// much as the rest of a pack.
template <int size, typename B>
__device__ __forceinline__ void add_bias(float* values, const B* bias, uint32_t first,
                                         uint32_t channels, uint32_t inner, bool packed) {
  if (packed) {  // whole packs of channels, next to each other
    float added[size];
    load_floats<size>(bias + first % channels, added);
#pragma unroll
    for (int i = 0; i < size; ++i) values[i] += added[i];
    return;
  }
  uint32_t position = first % inner, channel = first / inner % channels;
#pragma unroll
  for (int i = 0; i < size; ++i) {
    values[i] += device_float(bias[channel]);
    if (++position == inner) {
      position = 0;
      if (++channel == channels) channel = 0;
    }
  }
}

// One pack a thread; the last threads take the tail element by element.
template <typename T, typename B>
__global__ void __launch_bounds__(kThreads)
    residual_scale_kernel(Pointers<T, B> p, uint32_t count, uint32_t channels, uint32_t inner,
                          float factor, bool packed, bool packed_bias) {
  constexpr int kSize = Pack<T>::kSize;
  uint32_t first = (blockIdx.x * kThreads + threadIdx.x) * kSize;
  if (packed && first < count && count - first >= kSize) {
    float sum[kSize], more[kSize];
    load_floats<kSize>(p.h + first, sum);
    if (p.bias) add_bias<kSize>(sum, p.bias, first, channels, inner, packed_bias);
    load_floats<kSize>(p.x + first, more);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum[i] += more[i];
    if (p.h2) {
      load_floats<kSize>(p.h2 + first, more);
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum[i] += more[i];
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum[i] *= factor;
    store_floats<kSize>(p.out + first, sum);
    return;
  }
  for (uint32_t i = first; i < first + kSize && i < count; ++i) {
    float sum = device_float(p.h[i]);
    if (p.bias) add_bias<1>(&sum, p.bias, i, channels, inner, false);
    sum += device_float(p.x[i]);
    if (p.h2) sum += device_float(p.h2[i]);
    p.out[i] = from_float<T>(sum * factor);
  }
}

template <typename T, typename B>
cudaError_t run(const ResidualScaleArgs& a, void* stream) {
  constexpr int kSize = Pack<T>::kSize, kPerBlock = kThreads * kSize;
  Pointers<T, B> p{static_cast<const T*>(a.x), static_cast<const T*>(a.h),
                   static_cast<const T*>(a.h2), static_cast<const B*>(a.bias),
                   static_cast<T*>(a.out)};
  bool packed = can_pack<T>(a.x) && can_pack<T>(a.h) && can_pack<T>(a.h2) && can_pack<T>(a.out);
  bool packed_bias = a.inner == 1 && a.channels % kSize == 0 && can_pack<B>(a.bias);
  // In launches of whole periods of the bias, whose indices have 32 bits.
  int64_t period = std::lcm<int64_t>(a.bias ? a.channels * a.inner : 1, kSize);
  if (period > kLargest && period < a.count) return cudaErrorInvalidValue;
  int64_t most = std::max(kLargest / period * period, period);
  for (int64_t first = 0; first < a.count; first += most) {
    int64_t count = std::min(a.count - first, most);
    cudaError_t error =
        launch_kernel(residual_scale_kernel<T, B>, unsigned((count + kPerBlock - 1) / kPerBlock),
                      kThreads, 0, stream, 1, p, uint32_t(count), uint32_t(a.channels),
                      uint32_t(a.inner), a.factor, packed, packed_bias);
    if (error != cudaSuccess) return error;
    p.x += most, p.h += most, p.out += most;
    if (p.h2) p.h2 += most;
  }
  return cudaSuccess;
}

}  // namespace

int residual_scale_cuda(const ResidualScaleArgs& a, void* stream) {
  if (a.count == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  visit(a.dtype, [&](auto* type) {
    using T = typename DeviceType<std::remove_pointer_t<decltype(type)>>::type;
    error = a.bias_dtype == a.dtype ? run<T, T>(a, stream) : run<T, float>(a, stream);
  });
  return error;
}

}  // namespace lddgan
