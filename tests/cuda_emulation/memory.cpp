// Watches the memory accesses of the emulated kernels.
//
// The kernels are compiled with -fsanitize=thread, which calls the functions at the end of this
// file at each access. (Its own library is not linked.) Every two bytes of shared memory remember
// who wrote and who read them and between which barriers: two accesses of different threads, one of
// them writing, with no barrier between them, are an error in whatever order they were run. So are
// reads of what nobody wrote, accesses past the end, and a block that leaves while others of its
// cluster may still read it, and accesses just outside a tensor.
#include "machine.h"

namespace emulation {

namespace {

constexpr uint32_t kMany = 0xffffffff;

struct Cell {
  uint32_t writer, written;           // thread of the cluster; epoch of its block
  uint32_t written_cluster;           // and of the cluster
  uint32_t reader, read;              // of the block
  uint32_t visitor, visited_cluster;  // of the cluster's other blocks
};

std::vector<Cell>& shadow() {
  static std::vector<Cell> cells;
  return cells;
}

std::string place(const Block* block, size_t offset) {
  return "byte " + std::to_string(offset) + " of block " + std::to_string(block->index.x) +
         "'s shared memory";
}

void read_cell(Cell& c, Block* owner, size_t offset) {
  Machine& m = machine();
  Thread* t = m.current;
  if (c.written < owner->start) fail("reads " + place(owner, offset) + ", which nobody wrote");
  if (t->block == owner) {
    if (c.writer != t->id && c.written >= owner->epoch) {
      fail("reads " + place(owner, offset) + ", written by thread " +
           std::to_string(c.writer % 1024) + " without a barrier between");
    }
    if (c.read != owner->epoch) {
      c.read = owner->epoch;
      c.reader = t->id;
    } else if (c.reader != t->id) {
      c.reader = kMany;
    }
    return;
  }
  if (owner->leaving > 0) fail("reads " + place(owner, offset) + ", which may have left");
  if (c.written_cluster >= m.cluster_epoch) {
    fail("reads " + place(owner, offset) + " without a cluster barrier since it was written");
  }
  owner->visited = m.cluster_epoch;
  if (c.visited_cluster != m.cluster_epoch) {
    c.visited_cluster = m.cluster_epoch;
    c.visitor = t->id;
  } else if (c.visitor != t->id) {
    c.visitor = kMany;
  }
}

void write_cell(Cell& c, Block* owner, size_t offset) {
  Machine& m = machine();
  Thread* t = m.current;
  if (t->block != owner) fail("writes " + place(owner, offset) + ", another block's");
  bool fresh = c.written < owner->start;
  if (!fresh && c.writer != t->id && c.written >= owner->epoch) {
    fail("writes " + place(owner, offset) + ", as thread " + std::to_string(c.writer % 1024) +
         " did without a barrier between");
  }
  if (c.read >= owner->epoch && c.reader != t->id) {
    fail("writes " + place(owner, offset) + ", which others read without a barrier between");
  }
  if (c.visited_cluster >= m.cluster_epoch) {
    fail("writes " + place(owner, offset) +
         ", which another block reads without a barrier between");
  }
  c.writer = t->id;
  c.written = owner->epoch;
  c.written_cluster = m.cluster_epoch;
}

void access(const void* p, size_t size, bool writes) {
  Machine& m = machine();
  if (m.current == nullptr || m.shared == nullptr) return;
  size_t offset = size_t(static_cast<const unsigned char*>(p) - m.shared);
  if (offset >= m.shared_stride * m.cluster.size()) return check_global(p, size);
  Block* owner = m.cluster[offset / m.shared_stride].get();
  size_t inside = offset % m.shared_stride;
  if (inside + size > m.shared_bytes) fail("accesses " + place(owner, inside) + ", past its end");
  if (size % 2 != 0 || inside % size != 0) fail("accesses " + place(owner, inside) + " unaligned");
  for (size_t i = 0; i < size; i += 2) {
    Cell& c = shadow()[(offset + i) / 2];
    if (writes) {
      write_cell(c, owner, inside + i);
    } else {
      read_cell(c, owner, inside + i);
    }
  }
}

}  // namespace

// Epochs only grow, so what earlier launches left is old.
void prepare_shadow(size_t bytes) {
  if (shadow().size() < bytes / 2) shadow().resize(bytes / 2);
}

void check_exit() {
  Machine& m = machine();
  Block* block = m.current->block;
  if (block->visited >= m.cluster_epoch) {
    fail("block " + std::to_string(block->index.x) + " leaves while others read its shared memory");
  }
}

}  // namespace emulation

#define LDDGAN_WATCH(size)                                                                    \
  extern "C" void __tsan_read##size(void* p) { emulation::access(p, size, false); }           \
  extern "C" void __tsan_write##size(void* p) { emulation::access(p, size, true); }           \
  extern "C" void __tsan_unaligned_read##size(void* p) { emulation::access(p, size, false); } \
  extern "C" void __tsan_unaligned_write##size(void* p) { emulation::access(p, size, true); }
LDDGAN_WATCH(1)
LDDGAN_WATCH(2)
LDDGAN_WATCH(4)
LDDGAN_WATCH(8)
LDDGAN_WATCH(16)
#undef LDDGAN_WATCH
extern "C" void __tsan_read_range(void* p, size_t size) { emulation::access(p, size, false); }
extern "C" void __tsan_write_range(void* p, size_t size) { emulation::access(p, size, true); }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
