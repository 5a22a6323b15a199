#include "cpu/pixel_norm.h"

#include "torch_common.h"

namespace lddgan::pixel_norm {
namespace {

void check(const at::Tensor& z) {
  TORCH_CHECK(z.dim() == 2 && z.is_contiguous(), "pixel_norm: z must be contiguous (N, D)");
}

at::Tensor pixel_norm_cpu(const at::Tensor& z) {
  check(z);
  at::Tensor out = allocate_like(z);
  cpu::pixel_norm(
      {z.const_data_ptr(), nullptr, out.mutable_data_ptr(), z.size(0), z.size(1), dtype_of(z)});
  return out;
}

at::Tensor pixel_norm_backward_cpu(const at::Tensor& grad, const at::Tensor& z) {
  check(z);
  TORCH_CHECK(alike(z, grad), "pixel_norm_backward: grad must match z's shape, dtype and layout");
  at::Tensor out = allocate_like(z);
  cpu::pixel_norm_backward({z.const_data_ptr(), grad.const_data_ptr(), out.mutable_data_ptr(),
                            z.size(0), z.size(1), dtype_of(z)});
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("pixel_norm(Tensor z) -> Tensor");
  m.def("pixel_norm_backward(Tensor grad, Tensor z) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("pixel_norm", pixel_norm_cpu);
  m.impl("pixel_norm_backward", pixel_norm_backward_cpu);
}

}  // namespace
}  // namespace lddgan::pixel_norm
