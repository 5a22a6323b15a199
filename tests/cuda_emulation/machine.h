// The machine that the emulated CUDA runtime runs kernels on: threads are fibers of one CPU thread.
//
// It is built without the instrumentation that the kernels have (memory.cpp); what kernels call
// of it is declared here.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Set whenever a fiber is resumed.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// A GPU's limits, by compute capability.
struct Card {
  int capability, multiprocessors;
  size_t shared_bytes;  // of a block, at most
  unsigned max_cluster;
};

struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

struct Block {
  dim3 index;
  unsigned char* shared = nullptr;
  Barrier barrier;
  int alive = 0;
  int rank = 0;          // in its cluster
  uint32_t start = 0;    // epoch at which it began
  uint32_t epoch = 0;    // counts the barriers that all its threads have passed
  uint32_t leaving = 0;  // threads that have returned
  uint32_t visited = 0;  // cluster epoch in which another block last read its shared memory
};

struct Warp {
  std::vector<std::pair<unsigned, Barrier>> barriers;  // by mask: lanes of one warp may diverge
  uint64_t slots[32];
};

struct Thread {
  ucontext_t context;
  jmp_buf resume;
  std::unique_ptr<char[]> stack;
  dim3 index;
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint32_t id = 0;  // in the cluster
  int lane = 0;
  bool begun = false, done = false;
};

struct Machine {
  jmp_buf scheduler;
  Thread* current = nullptr;  // null while no kernel runs
  std::vector<std::unique_ptr<Block>> cluster;
  size_t shared_bytes = 0, shared_stride = 0;
  unsigned char* shared = nullptr;  // of all blocks of the cluster
  Barrier cluster_barrier;
  int cluster_alive = 0;
  uint32_t cluster_epoch = 1;
  uint32_t epoch = 1;  // where the next block begins
  uint64_t progress = 0;
  const std::function<void()>* body = nullptr;
  std::string error;  // of the last launch; empty where it went well
};

Machine& machine();
const Card& card();

// Stops the kernel that runs; its launch returns an error.
[[noreturn]] void fail(const std::string& what);

void sync_block(const char* file, int line);
void sync_cluster(const char* file, int line);
void sync_warp(unsigned mask);
uint64_t shuffle(unsigned mask, uint64_t value, int source);
void* dynamic_shared();
void* shared_of(void* own, int rank);

// 0, or an error's number.
int set_dynamic_limit(const void* kernel, size_t bytes);
int launch(const void* kernel, dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes,
           const std::function<void()>& body);

// allocator.cpp: fails where the bytes lie between two tensors' memories.
void check_global(const void* p, size_t size);

// memory.cpp
void prepare_shadow(size_t bytes);
void check_exit();

}  // namespace emulation
