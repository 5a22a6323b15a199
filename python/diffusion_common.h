// What the bindings of diffuse_pair and posterior_sample share.
#pragma once

#include "lddgan/seeded_normal.h"
#include "torch_common.h"

namespace lddgan {

// x: (N, C, H, W), contiguous or channels_last.
inline Batch batch_of(const at::Tensor& x) {
  return {x.size(0), x.size(1), x.size(2) * x.size(3), !x.is_contiguous()};
}

// What a CPU kernel reads as an index must lie in the tables.
inline void check_t(const char* op, const at::Tensor& t, int64_t num_steps) {
  const int64_t* values = t.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < t.numel(); ++n) {
    TORCH_CHECK_VALUE(values[n] >= 0 && values[n] < num_steps, op, ": t must be in 0..",
                      num_steps - 1, ", got ", values[n]);
  }
}

template <typename T>
const T* data_or_null(const std::optional<at::Tensor>& x) {
  return x.has_value() ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}

}  // namespace lddgan
