// A CUDA runtime that runs kernels on the CPU, for tests on machines without a GPU.
//
// The .cu files compile against these headers as plain C++. Every thread of a block (of all blocks
// of a cluster) is a fiber; __syncthreads, shuffles and cluster barriers switch fibers, so real
// barrier semantics are executed, in an order drawn at random (machine.cpp). Every access to shared
// memory is watched (memory.cpp): a missing barrier is found in whatever order fibers run. Launches
// are held to the limits of a card, which tests choose.
// It proves indexing, arithmetic, barriers and limits; not speed or registers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "machine.h"

#define LDDGAN_EMULATED_CUDA 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(16) float4 {
  float x, y, z, w;
};

static inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulation::sync_block(file, line);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T v, int bits) {
  static_assert(sizeof(T) <= 8);
  uint64_t all = 0;
  std::memcpy(&all, &v, sizeof(T));
  all = emulation::shuffle(mask, all, emulation::machine().current->lane ^ bits);
  std::memcpy(&v, &all, sizeof(T));
  return v;
}

static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::max;
using std::min;
static inline void __trap() { emulation::fail("__trap"); }

// --- The host API that the launchers use.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNotSupported = 801 };
typedef void* cudaStream_t;

struct cudaFuncAttributes {
  int ptxVersion;
};
// As if compiled for the very card.
template <typename Kernel>
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = emulation::card().capability;
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename Kernel>
static inline cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  return cudaError_t(
      emulation::set_dynamic_limit(reinterpret_cast<const void*>(kernel), size_t(bytes)));
}

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
template <typename... Parameters, typename... Arguments>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                                             void (*kernel)(Parameters...),
                                             Arguments... arguments) {
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) cluster = config->attrs[i].val.clusterDim.x;
  return cudaError_t(emulation::launch(reinterpret_cast<const void*>(kernel), config->gridDim,
                                       config->blockDim, cluster, config->dynamicSmemBytes,
                                       [&] { kernel(arguments...); }));
}
