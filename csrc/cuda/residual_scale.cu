#include "lddgan/residual_scale.h"

#include "lddgan/cuda.cuh"

namespace lddgan {

namespace {

constexpr float kInverseSqrt2 = 0.70710678118654752f;
constexpr int kThreads = 256;

// One pack a thread; the last threads take the tail element by element.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    residual_scale_kernel(const T* __restrict__ x, const T* __restrict__ h, T* __restrict__ out,
                          int64_t count, bool packed) {
  constexpr int kSize = Pack<T>::kSize;
  int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kSize;
  if (packed && first + kSize <= count) {
    Pack<T> a = *reinterpret_cast<const Pack<T>*>(x + first);
    Pack<T> b = *reinterpret_cast<const Pack<T>*>(h + first);
    Pack<T> result;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      result.data[i] =
          from_float<T>((device_float(a.data[i]) + device_float(b.data[i])) * kInverseSqrt2);
    }
    *reinterpret_cast<Pack<T>*>(out + first) = result;
    return;
  }
  for (int64_t i = first; i < first + kSize && i < count; ++i) {
    out[i] = from_float<T>((device_float(x[i]) + device_float(h[i])) * kInverseSqrt2);
  }
}

}  // namespace

int residual_scale_cuda(const ResidualScaleArgs& a, void* stream) {
  if (a.count == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  visit(a.dtype, [&](auto* type) {
    using T = typename DeviceType<std::remove_pointer_t<decltype(type)>>::type;
    constexpr int kPerBlock = kThreads * Pack<T>::kSize;
    bool packed = can_pack<T>(a.x) && can_pack<T>(a.h) && can_pack<T>(a.out);
    error = launch_kernel(residual_scale_kernel<T>, (a.count + kPerBlock - 1) / kPerBlock, kThreads,
                          0, stream, 1, static_cast<const T*>(a.x), static_cast<const T*>(a.h),
                          static_cast<T*>(a.out), a.count, packed);
  });
  return error;
}

}  // namespace lddgan
