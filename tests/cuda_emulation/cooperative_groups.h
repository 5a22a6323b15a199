// The cluster group of the emulated CUDA runtime.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    emulation::sync_cluster(file, line);
  }
  template <typename T>
  T* map_shared_rank(T* p, int rank) const {
    return static_cast<T*>(emulation::shared_of(p, rank));
  }
};

static inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
