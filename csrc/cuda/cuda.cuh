// What the .cu files share: 16-byte vectors of any storage type, conversions, launch helpers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

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

// The two 16-bit elements of a word, and the word of two.
template <typename T>
__device__ __forceinline__ float low_float(uint32_t word) {
  uint16_t bits = uint16_t(word);
  return device_float(reinterpret_cast<const T&>(bits));
}
template <typename T>
__device__ __forceinline__ float high_float(uint32_t word) {
  return low_float<T>(word >> 16);
}
template <typename T>
__device__ __forceinline__ uint32_t word_of(float low, float high) {
  T pair[2] = {from_float<T>(low), from_float<T>(high)};
  return reinterpret_cast<const uint16_t&>(pair[0]) |
         uint32_t(reinterpret_cast<const uint16_t&>(pair[1])) << 16;
}
#ifndef LDDGAN_EMULATED_CUDA
template <>
__device__ __forceinline__ float low_float<__nv_bfloat16>(uint32_t word) {
  return __uint_as_float(word << 16);
}
template <>
__device__ __forceinline__ float high_float<__nv_bfloat16>(uint32_t word) {
  return __uint_as_float(word & 0xffff0000);
}
template <>
__device__ __forceinline__ uint32_t word_of<__nv_bfloat16>(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
template <>
__device__ __forceinline__ uint32_t word_of<__half>(float low, float high) {
  __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
#endif

// 1 / x, to within an ulp, of normal numbers.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef LDDGAN_EMULATED_CUDA
  return 1.0f / x;
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return fmaf(result, fmaf(-x, result, 1.0f), result);
#endif
}

// 1 / (1 + e^-x), by two instructions of the special function units; subnormal numbers are zero.
// Where results stay in float32 it is as exact as PyTorch's: with what the exponent of 2 missed.
template <typename T>
__device__ __forceinline__ float sigmoid(float x) {
#ifdef LDDGAN_EMULATED_CUDA
  return 1.0f / (1.0f + std::exp(-x));
#else
  constexpr float kLog2E = 1.44269504f;
  if constexpr (std::is_same_v<T, float>) {
    x = fmaxf(x, -87.0f);  // of less, e^-x is infinite
  }
  const float exponent = x * -kLog2E;
  float power, result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
  if constexpr (std::is_same_v<T, float>) {
    const float missed = fmaf(x, -kLog2E, -exponent) - x * 1.92596299e-8f;
    result = reciprocal(1.0f + fmaf(power, missed * 0.693147181f, power));
  } else {
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
  }
  return result;
#endif
}

// 16 bytes from global to shared memory, past the registers; in other packs' sizes by them.
#if defined(LDDGAN_EMULATED_CUDA) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
constexpr bool kCopiesPastRegisters = true;
#else
constexpr bool kCopiesPastRegisters = false;
#endif

template <typename Pack>
__device__ __forceinline__ void start_copy(Pack* to, const Pack* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(to))),
      "l"(__cvta_generic_to_global(from))
      : "memory");
#else
  *to = *from;
#endif
}

// Ends a batch of copies.
__device__ __forceinline__ void end_batch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most so many of the thread's batches are under way, or at most two.
__device__ __forceinline__ void await_batches(int under_way) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if (under_way >= 2) {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  } else if (under_way == 1) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  } else {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  }
#endif
}

// 16 bytes of T, moved by one instruction where the address is aligned to 16.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T data[kSize];
};

// `count` elements as floats: one, or whole packs at an address aligned to 16 bytes.
template <int count, typename T>
__device__ __forceinline__ void load_floats(const T* p, float* values) {
  if constexpr (count == 1) {
    values[0] = device_float(*p);
  } else {
#pragma unroll
    for (int k = 0; k < count; k += Pack<T>::kSize) {
      Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p + k);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) values[k + i] = device_float(pack.data[i]);
    }
  }
}

template <int count, typename T>
__device__ __forceinline__ void store_floats(T* p, const float* values) {
  if constexpr (count == 1) {
    *p = from_float<T>(values[0]);
  } else {
#pragma unroll
    for (int k = 0; k < count; k += Pack<T>::kSize) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) pack.data[i] = from_float<T>(values[k + i]);
#ifdef LDDGAN_EMULATED_CUDA
      *reinterpret_cast<Pack<T>*>(p + k) = pack;
#else
      // By its intrinsic: among 64-bit divisions the compiler split a plain store into four.
      __stwb(reinterpret_cast<uint4*>(p + k), reinterpret_cast<const uint4&>(pack));
#endif
    }
  }
}

// Launches a kernel, optionally in thread-block clusters of `cluster` blocks along x (sm_90).
// (Not <<<>>>: this form is plain C++, so that tests can run the kernels without a GPU.)
template <typename... Parameters, typename... Arguments>
inline cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, int threads,
                                 size_t shared_bytes, void* stream, unsigned cluster,
                                 const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = cudaStream_t(stream);
  cudaLaunchAttribute attribute{};
  if (cluster > 1) {
    // What is compiled for less has no code for clusters, wherever it runs.
    cudaFuncAttributes compiled{};
    cudaError_t error = cudaFuncGetAttributes(&compiled, kernel);
    if (error != cudaSuccess) return error;
    if (compiled.ptxVersion < 90) return cudaErrorNotSupported;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  if (shared_bytes > 48 * 1024) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// LDDGAN_DYNAMIC_SHARED(float, cache); declares `float* cache`, the block's dynamic shared memory.
#ifdef LDDGAN_EMULATED_CUDA
#define LDDGAN_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::emulation::dynamic_shared())
#else
#define LDDGAN_DYNAMIC_SHARED(T, name)                           \
  extern __shared__ __align__(16) unsigned char lddgan_shared[]; \
  T* name = reinterpret_cast<T*>(lddgan_shared)
#endif

// Whether a pointer and an element count both allow 16-byte accesses throughout.
template <typename T>
inline bool can_pack(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace lddgan
