// A CUDA runtime that runs kernels on the CPU, for tests on machines without a GPU.
//
// The .cu files compile against these headers as plain C++. Every thread of a block (of all blocks
// of a cluster) is a fiber; __syncthreads, shuffles and cluster barriers switch fibers, so real
// barrier semantics are executed: a divergent barrier is reported as a deadlock, shared memory
// starts as NaN, and the order in which fibers run alternates, so that a missing barrier shows.
// It proves indexing and arithmetic, not speed, memory ordering or registers.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

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

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

// Set whenever a fiber is resumed.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

struct Block {
  dim3 index;
  std::vector<unsigned char> shared;
  Barrier barrier;
  int alive = 0;
  int rank = 0;  // in its cluster
};

struct Warp {
  std::map<unsigned, Barrier> barriers;  // one for each mask in use: lanes of one warp may diverge
  uint64_t slots[32];
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  bool done = false;
};

struct Machine {
  ucontext_t scheduler;
  Thread* current = nullptr;
  std::vector<Block*> cluster;
  Barrier cluster_barrier;
  int cluster_alive = 0;
  uint64_t progress = 0;
  const std::function<void()>* body = nullptr;
};

inline Machine& machine() {
  static Machine m;
  return m;
}

inline void yield() {
  Machine& m = machine();
  swapcontext(&m.current->context, &m.scheduler);
}

// Returns once `expected` threads have arrived; `expected` is read anew, for threads that exit.
template <typename Expected>
inline void wait(Barrier& barrier, const Expected& expected) {
  uint64_t generation = barrier.generation;
  ++barrier.arrived;
  ++machine().progress;
  while (barrier.generation == generation) {
    if (barrier.arrived >= expected()) {
      barrier.arrived = 0;
      ++barrier.generation;
      ++machine().progress;
      return;
    }
    yield();
  }
}

inline void sync_block() {
  Block* block = machine().current->block;
  wait(block->barrier, [=] { return block->alive; });
}

inline void sync_cluster() {
  wait(machine().cluster_barrier, [] { return machine().cluster_alive; });
}

inline void sync_warp(unsigned mask) {
  Thread* t = machine().current;
  int threads = int(blockDim.x * blockDim.y * blockDim.z);
  int linear = int(t->index.x + blockDim.x * (t->index.y + blockDim.y * t->index.z));
  int expected = std::min(__builtin_popcount(mask), threads - linear / 32 * 32);
  wait(t->warp->barriers[mask], [=] { return expected; });
}

template <typename T>
inline T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8);
  Thread* t = machine().current;
  std::memcpy(&t->warp->slots[t->lane], &value, sizeof(T));
  sync_warp(mask);
  T result;
  std::memcpy(&result, &t->warp->slots[source & 31], sizeof(T));
  sync_warp(mask);
  return result;
}

inline void entry() {
  Machine& m = machine();
  Thread* self = m.current;
  (*m.body)();
  self->done = true;
  --self->block->alive;
  --m.cluster_alive;
  ++m.progress;
  yield();
}

// Runs all threads of one cluster to their end.
inline void run_cluster(std::vector<std::unique_ptr<Block>>& blocks, size_t shared_bytes) {
  Machine& m = machine();
  constexpr size_t kStack = 64 * 1024;
  unsigned count = blockDim.x * blockDim.y * blockDim.z;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<Warp>> warps;
  m.cluster.clear();
  m.cluster_barrier = {};
  m.cluster_alive = int(count * blocks.size());
  for (auto& block : blocks) {
    block->shared.assign(shared_bytes + 1024, 0xff);  // NaN in every float format
    block->alive = int(count);
    block->rank = int(m.cluster.size());
    m.cluster.push_back(block.get());
    for (unsigned i = 0; i < count; ++i) {
      if (i % 32 == 0) warps.push_back(std::make_unique<Warp>());
      auto t = std::make_unique<Thread>();
      t->index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
      t->block = block.get();
      t->warp = warps.back().get();
      t->lane = int(i % 32);
      t->stack.reset(new char[kStack]);
      getcontext(&t->context);
      t->context.uc_stack.ss_sp = t->stack.get();
      t->context.uc_stack.ss_size = kStack;
      t->context.uc_link = nullptr;
      makecontext(&t->context, entry, 0);
      threads.push_back(std::move(t));
    }
  }
  for (int round = 0;; ++round) {
    uint64_t before = m.progress;
    bool all_done = true;
    for (size_t k = 0; k < threads.size(); ++k) {
      Thread* t = threads[round % 2 ? threads.size() - 1 - k : k].get();
      if (t->done) continue;
      all_done = false;
      m.current = t;
      threadIdx = t->index;
      blockIdx = t->block->index;
      swapcontext(&m.scheduler, &t->context);
    }
    if (all_done) return;
    if (m.progress == before) {
      std::fprintf(stderr, "CUDA emulation: deadlock, threads wait at different barriers\n");
      std::abort();
    }
  }
}

inline void run_grid(dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes,
                     const std::function<void()>& body) {
  Machine& m = machine();
  gridDim = grid;
  blockDim = block;
  m.body = &body;
  uint64_t total = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t first = 0; first < total; first += cluster) {
    std::vector<std::unique_ptr<Block>> blocks;
    for (uint64_t i = first; i < first + cluster; ++i) {
      auto b = std::make_unique<Block>();
      b->index = dim3(unsigned(i % grid.x), unsigned(i / grid.x % grid.y),
                      unsigned(i / (uint64_t(grid.x) * grid.y)));
      blocks.push_back(std::move(b));
    }
    run_cluster(blocks, shared_bytes);
  }
}

inline void* dynamic_shared() {
  auto& shared = machine().current->block->shared;
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(shared.data()) + 1023) / 1024 * 1024);
}

}  // namespace emulation

#define warpSize 32

static inline void __syncthreads() { emulation::sync_block(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::sync_warp(mask); }
static inline void __threadfence() {}
template <typename T>
static inline T __shfl_sync(unsigned mask, T v, int lane, int = 32) {
  return emulation::shuffle(mask, v, lane);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int = 32) {
  return emulation::shuffle(mask, v, emulation::machine().current->lane ^ bits);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T v, int delta, int = 32) {
  int lane = emulation::machine().current->lane;
  return emulation::shuffle(mask, v, lane + delta < 32 ? lane + delta : lane);
}
static inline int __syncthreads_or(int predicate) {
  static int result;
  __syncthreads();
  result = 0;
  __syncthreads();
  if (predicate) result = 1;
  __syncthreads();
  return result;
}

template <typename T>
static inline T __ldg(const T* p) {
  return *p;
}
template <typename T>
static inline T __ldcs(const T* p) {
  return *p;
}
template <typename T>
static inline void __stcs(T* p, T v) {
  *p = v;
}
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
#define __expf(x) std::exp(float(x))  // macros: the C library declares these names
#define __logf(x) std::log(float(x))
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return std::sqrt(x); }
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return unsigned((uint64_t(a) * b) >> 32);
}
static inline float sinpif(float x) { return float(std::sin(double(x) * 3.14159265358979323846)); }
static inline float cospif(float x) { return float(std::cos(double(x) * 3.14159265358979323846)); }
static inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
static inline unsigned __float_as_uint(float x) {
  unsigned u;
  std::memcpy(&u, &x, 4);
  return u;
}
static inline float __uint_as_float(unsigned u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
static inline int __float_as_int(float x) {
  int i;
  std::memcpy(&i, &x, 4);
  return i;
}
static inline float __int_as_float(int i) {
  float x;
  std::memcpy(&x, &i, 4);
  return x;
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
using std::max;
using std::min;
static inline void __trap() { std::abort(); }

// --- The host API that the launchers use.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
typedef void* cudaStream_t;
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
};
static inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  // An H200's figures; LDDGAN_EMULATED_SMS lets tests reach the plans of smaller devices.
  const char* sms = std::getenv("LDDGAN_EMULATED_SMS");
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = sms ? std::atoi(sms) : 132;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 232448;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
  }
  return cudaSuccess;
}

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed,
};
template <typename Kernel>
static inline cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
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
  if (config->gridDim.x % cluster != 0) return cudaErrorInvalidValue;
  emulation::run_grid(config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes,
                      [&] { kernel(arguments...); });
  return cudaSuccess;
}
