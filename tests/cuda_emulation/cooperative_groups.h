// The cluster group of the emulated CUDA runtime.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  void sync() const { emulation::sync_cluster(); }
  unsigned block_rank() const { return unsigned(emulation::machine().current->block->rank); }
  unsigned num_blocks() const { return unsigned(emulation::machine().cluster.size()); }
  template <typename T>
  T* map_shared_rank(T* p, int rank) const {
    emulation::Thread* t = emulation::machine().current;
    auto base = [](emulation::Block* b) {
      return (reinterpret_cast<uintptr_t>(b->shared.data()) + 1023) / 1024 * 1024;
    };
    uintptr_t offset = reinterpret_cast<uintptr_t>(p) - base(t->block);
    return reinterpret_cast<T*>(base(emulation::machine().cluster[rank]) + offset);
  }
};

static inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
