#include "cpu/nearest_code.h"

#include "torch_common.h"

namespace lddgan::nearest_code {
namespace {

// z is dense, codebook (K, D) of any float dtype (ops/nearest_code.py sees to it).
std::tuple<at::Tensor, at::Tensor> nearest_code_cpu(const at::Tensor& z,
                                                    const at::Tensor& codebook) {
  TORCH_CHECK(
      z.dim() == 4 && codebook.dim() == 2 && codebook.size(1) == z.size(1) && codebook.size(0) > 0,
      "nearest_code: codebook must be of shape (K, ", z.size(1), ")");
  TORCH_CHECK(same_layout(z, z), "nearest_code: z must be dense, got strides ", z.strides());
  at::Tensor codes = codebook.to(at::kFloat).contiguous();
  at::Tensor quantised = allocate_like(z);
  at::Tensor indices = allocate({z.size(0), z.size(2), z.size(3)}, z.options().dtype(at::kLong));
  int64_t pixels = indices.numel(), depth = z.size(1), count = codes.size(0);
  at::Tensor workspace = allocate({nearest_code_workspace(pixels, depth, count)}, codes.options());
  cpu::nearest_code({z.const_data_ptr(), codes.const_data_ptr<float>(),
                     quantised.mutable_data_ptr(), indices.mutable_data_ptr<int64_t>(),
                     workspace.mutable_data_ptr<float>(), pixels, z.size(2) * z.size(3), depth,
                     count, !z.is_contiguous(), dtype_of(z)});
  return {quantised, indices};
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("nearest_code(Tensor z, Tensor codebook) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) { m.impl("nearest_code", nearest_code_cpu); }

}  // namespace
}  // namespace lddgan::nearest_code
