// What the bindings of diffuse_pair and posterior_sample share.
#pragma once

#include "lddgan/seeded_normal.h"
#include "torch_common.h"

namespace lddgan {

// x: (N, C, H, W), contiguous or channels_last.
inline Batch batch_of(const at::Tensor& x) {
  return {x.size(0), x.size(1), x.size(2) * x.size(3), !x.is_contiguous()};
}

// What kernels read by index beside x: one entry a sample, or a step of the schedule.
inline void check_row(const char* op, const char* name, const at::Tensor& row, int64_t count,
                      const at::Tensor& x) {
  TORCH_CHECK_VALUE(
      row.dim() == 1 && row.size(0) == count && row.is_contiguous() && row.device() == x.device(),
      op, ": ", name, " must be contiguous of shape (", count, ",) on ", x.device(), ", got ",
      row.sizes(), " on ", row.device());
}

inline void check_row(const char* op, const char* name, const std::optional<at::Tensor>& row,
                      int64_t count, const at::Tensor& x) {
  if (row) check_row(op, name, *row, count, x);
}

inline void check_image(const char* op, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4 && same_layout(x, x), op, ": x0 must be 4-D and dense, got shape ",
                    x.sizes(), " and strides ", x.strides());
}

inline void check_alike(const char* op, const char* name, const std::optional<at::Tensor>& y,
                        const at::Tensor& x) {
  TORCH_CHECK_VALUE(!y || alike(x, *y), op, ": ", name,
                    " must match x0's shape, dtype, layout and device, got ", y->sizes());
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
