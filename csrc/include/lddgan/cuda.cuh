// What the .cu files share: 16-byte vectors of any storage type, conversions, launch helpers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "lddgan/dtype.h"

namespace lddgan {

// The device type of a storage type.
template <typename T>
struct DeviceType {
  using type = T;
};
template <>
struct DeviceType<BFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct DeviceType<Half> {
  using type = __half;
};

__device__ __forceinline__ float device_float(float x) { return x; }
__device__ __forceinline__ float device_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float device_float(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// 16 bytes of T, moved by one instruction where the address is aligned to 16.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T data[kSize];
};

// Whether a pointer and an element count both allow 16-byte accesses throughout.
template <typename T>
inline bool can_pack(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace lddgan
