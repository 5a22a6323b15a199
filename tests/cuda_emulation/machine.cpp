#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

namespace {

constexpr size_t kStack = 64 * 1024;
constexpr size_t kRedZone = 1024;  // between the shared memories of two blocks

const Card kCards[] = {
    {75, 40, 65536, 1},   {80, 108, 166912, 1},  {86, 84, 101376, 1},   {89, 128, 101376, 1},
    {90, 132, 232448, 8}, {100, 148, 232448, 8}, {120, 170, 101376, 8},
};

struct Launch {
  uint64_t blocks, threads, cluster, shared_bytes;
};

struct Settings {
  std::string skipped;  // "file.cu:12": a barrier that is left out
  uint64_t seed = 1;
  bool dry = false;  // launches are checked, and nothing runs
  Card card = kCards[4];
  std::vector<Launch> launches;
  std::map<const void*, size_t> dynamic_limits;
};

Settings& settings() {
  static Settings s;
  return s;
}

bool is_skipped(const char* file, int line) {
  const std::string& skipped = settings().skipped;
  if (skipped.empty()) return false;
  const char* name = std::strrchr(file, '/');
  return std::string(name ? name + 1 : file) + ":" + std::to_string(line) == skipped;
}

void yield() {
  Machine& m = machine();
  if (_setjmp(m.current->resume) == 0) _longjmp(m.scheduler, 1);
}

// Returns once `expected` threads have arrived; `expected` is read anew, for threads that exit.
// The last to arrive calls all_arrived().
template <typename Expected, typename Arrived>
void wait(Barrier& barrier, const Expected& expected, const Arrived& all_arrived) {
  uint64_t generation = barrier.generation;
  ++barrier.arrived;
  ++machine().progress;
  while (barrier.generation == generation) {
    if (barrier.arrived >= expected()) {
      barrier.arrived = 0;
      ++barrier.generation;
      ++machine().progress;
      all_arrived();
      return;
    }
    yield();
  }
}

void entry() {
  Machine& m = machine();
  Thread* self = m.current;
  (*m.body)();
  check_exit();
  self->done = true;
  --self->block->alive;
  ++self->block->leaving;
  --m.cluster_alive;
  ++m.progress;
  yield();
}

void resume(Thread* t) {
  Machine& m = machine();
  m.current = t;
  threadIdx = t->index;
  blockIdx = t->block->index;
  if (_setjmp(m.scheduler) == 0) {
    if (t->begun) _longjmp(t->resume, 1);
    t->begun = true;
    setcontext(&t->context);
  }
  m.current = nullptr;
}

// Runs all threads of the blocks in m.cluster to their end, or to an error.
void run_cluster(std::mt19937_64& random) {
  Machine& m = machine();
  unsigned count = blockDim.x * blockDim.y * blockDim.z;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<Thread*> order;
  m.cluster_barrier = {};
  m.cluster_alive = int(count * m.cluster.size());
  ++m.cluster_epoch;
  for (auto& block : m.cluster) {
    block->alive = int(count);
    block->start = block->epoch = m.epoch;
    for (unsigned i = 0; i < count; ++i) {
      if (i % 32 == 0) warps.push_back(std::make_unique<Warp>());
      auto t = std::make_unique<Thread>();
      t->index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
      t->block = block.get();
      t->warp = warps.back().get();
      t->id = uint32_t(block->rank) * 1024 + i;
      t->lane = int(i % 32);
      t->stack.reset(new char[kStack]);
      getcontext(&t->context);
      t->context.uc_stack.ss_sp = t->stack.get();
      t->context.uc_stack.ss_size = kStack;
      t->context.uc_link = nullptr;
      makecontext(&t->context, entry, 0);
      order.push_back(t.get());
      threads.push_back(std::move(t));
    }
  }
  while (!order.empty() && m.error.empty()) {
    uint64_t before = m.progress;
    std::shuffle(order.begin(), order.end(), random);
    for (Thread* t : order) {
      resume(t);
      if (!m.error.empty()) break;
    }
    std::erase_if(order, [](Thread* t) { return t->done; });
    if (!order.empty() && m.error.empty() && m.progress == before) {
      m.error = "deadlock, threads wait at different barriers";
    }
  }
  for (auto& block : m.cluster) m.epoch = std::max(m.epoch, block->epoch + 1);
}

}  // namespace

Machine& machine() {
  static Machine m;
  return m;
}

const Card& card() { return settings().card; }

void fail(const std::string& what) {
  Machine& m = machine();
  const dim3 &t = threadIdx, &b = blockIdx;
  m.error = what + " (thread " + std::to_string(t.x) + " of block " + std::to_string(b.x) + ")";
  _longjmp(m.scheduler, 1);
}

void sync_block(const char* file, int line) {
  if (is_skipped(file, line)) return;
  Block* block = machine().current->block;
  wait(block->barrier, [=] { return block->alive; }, [=] { ++block->epoch; });
}

void sync_cluster(const char* file, int line) {
  if (is_skipped(file, line)) return;
  Machine& m = machine();
  auto arrived = [&] {
    ++m.cluster_epoch;
    for (auto& block : m.cluster) ++block->epoch;
  };
  wait(m.cluster_barrier, [&] { return m.cluster_alive; }, arrived);
}

void sync_warp(unsigned mask) {
  Thread* t = machine().current;
  int threads = int(blockDim.x * blockDim.y * blockDim.z);
  int linear = int(t->index.x + blockDim.x * (t->index.y + blockDim.y * t->index.z));
  if ((mask >> t->lane & 1) == 0) fail("a warp's barrier is called by a lane outside its mask");
  int expected = std::min(__builtin_popcount(mask), threads - linear / 32 * 32);
  auto& barriers = t->warp->barriers;
  size_t i = 0;
  while (i < barriers.size() && barriers[i].first != mask) ++i;
  if (i == barriers.size()) {
    barriers.reserve(64);  // others hold references
    barriers.push_back({mask, {}});
  }
  wait(barriers[i].second, [=] { return expected; }, [] {});
}

uint64_t shuffle(unsigned mask, uint64_t value, int source) {
  Thread* t = machine().current;
  if ((mask >> (source & 31) & 1) == 0) fail("a shuffle reads a lane outside its mask");
  t->warp->slots[t->lane] = value;
  sync_warp(mask);
  uint64_t result = t->warp->slots[source & 31];
  sync_warp(mask);
  return result;
}

void* dynamic_shared() { return machine().current->block->shared; }

void* shared_of(void* own, int rank) {
  Machine& m = machine();
  auto offset = static_cast<unsigned char*>(own) - m.current->block->shared;
  return m.cluster[size_t(rank)]->shared + offset;
}

int set_dynamic_limit(const void* kernel, size_t bytes) {
  if (bytes > card().shared_bytes) {
    machine().error = "a block asks for " + std::to_string(bytes) + " shared bytes of " +
                      std::to_string(card().shared_bytes);
    return 1;
  }
  settings().dynamic_limits[kernel] = bytes;
  return 0;
}

int launch(const void* kernel, dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes,
           const std::function<void()>& body) {
  Machine& m = machine();
  Settings& s = settings();
  uint64_t total = uint64_t(grid.x) * grid.y * grid.z, threads = block.x * block.y * block.z;
  s.launches.push_back({total, threads, cluster, shared_bytes});
  auto limit = s.dynamic_limits.find(kernel);
  size_t allowed = std::max<size_t>(48 * 1024, limit == s.dynamic_limits.end() ? 0 : limit->second);
  m.error.clear();
  if (total == 0 || total > 0x7fffffff) {
    m.error = "a grid of " + std::to_string(total) + " blocks";
  } else if (threads == 0 || threads > 1024) {
    m.error = "a block of " + std::to_string(threads) + " threads";
  } else if (cluster > card().max_cluster || total % cluster != 0) {
    m.error = std::to_string(total) + " blocks in clusters of " + std::to_string(cluster);
  } else if (shared_bytes > allowed) {
    m.error = std::to_string(shared_bytes) + " shared bytes were not asked for beforehand";
  }
  if (!m.error.empty()) return 1;
  if (s.dry) return 0;
  gridDim = grid;
  blockDim = block;
  m.body = &body;
  m.shared_bytes = shared_bytes;
  m.shared_stride = (shared_bytes + 1023) / 1024 * 1024 + kRedZone;
  std::unique_ptr<unsigned char[]> memory(new unsigned char[m.shared_stride * cluster + 1024]);
  m.shared = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.get()) + 1023) /
                                              1024 * 1024);
  prepare_shadow(m.shared_stride * cluster);
  std::mt19937_64 random(s.seed);
  for (uint64_t first = 0; first < total && m.error.empty(); first += cluster) {
    std::memset(m.shared, 0xff, m.shared_stride * cluster);  // NaN in every float format
    m.cluster.clear();
    for (uint64_t i = first; i < first + cluster; ++i) {
      auto b = std::make_unique<Block>();
      b->index = dim3(unsigned(i % grid.x), unsigned(i / grid.x % grid.y),
                      unsigned(i / (uint64_t(grid.x) * grid.y)));
      b->rank = int(i - first);
      b->shared = m.shared + size_t(b->rank) * m.shared_stride;
      m.cluster.push_back(std::move(b));
    }
    run_cluster(random);
  }
  m.cluster.clear();
  m.shared = nullptr;
  return m.error.empty() ? 0 : 1;
}

}  // namespace emulation

// What tests set and read, through ctypes.
extern "C" {
__attribute__((visibility("default"))) const char* emulation_error() {
  return emulation::machine().error.c_str();
}

// A GPU's compute capability; 0 where there is no such card.
__attribute__((visibility("default"))) int emulation_set_card(int capability) {
  for (const emulation::Card& card : emulation::kCards) {
    if (card.capability == capability) return emulation::settings().card = card, 1;
  }
  return 0;
}

__attribute__((visibility("default"))) void emulation_set_dry(int dry) {
  emulation::settings().dry = dry != 0;
}

__attribute__((visibility("default"))) void emulation_set_order(uint64_t seed) {
  emulation::settings().seed = seed;
}

__attribute__((visibility("default"))) void emulation_skip_barrier(const char* place) {
  emulation::settings().skipped = place;
}

// Copies (blocks, threads, cluster, shared bytes) of the launches since the last call, at most
// `most`; returns how many there were.
__attribute__((visibility("default"))) int emulation_launches(uint64_t* out, int most) {
  auto& launches = emulation::settings().launches;
  int count = int(launches.size());
  for (int i = 0; i < std::min(count, most); ++i) {
    std::memcpy(out + 4 * i, &launches[size_t(i)], 4 * sizeof(uint64_t));
  }
  launches.clear();
  return count;
}
}
