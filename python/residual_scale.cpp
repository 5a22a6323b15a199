#include "lddgan/residual_scale.h"

#include "torch_common.h"

namespace lddgan {
namespace {

// x and h share dtype, device, shape and dense strides (ops/residual_scale.py sees to it).
ResidualScaleArgs prepare(const at::Tensor& x, const at::Tensor& h, at::Tensor& out) {
  TORCH_CHECK(x.sizes() == h.sizes() && same_layout(x, h),
              "residual_scale: h must match x's shape and layout");
  out = at::empty_like(x);
  return {x.const_data_ptr(), h.const_data_ptr(), out.mutable_data_ptr(), x.numel(), dtype_of(x)};
}

at::Tensor residual_scale_cpu(const at::Tensor& x, const at::Tensor& h) {
  at::Tensor out;
  cpu::residual_scale(prepare(x, h, out));
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) { m.def("residual_scale(Tensor x, Tensor h) -> Tensor"); }
TORCH_LIBRARY_IMPL(lddgan, CPU, m) { m.impl("residual_scale", residual_scale_cpu); }

#ifdef LDDGAN_CUDA
at::Tensor residual_scale_on_cuda(const at::Tensor& x, const at::Tensor& h) {
  at::Tensor out;
  launch(residual_scale_cuda, prepare(x, h, out), x);
  return out;
}
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) { m.impl("residual_scale", residual_scale_on_cuda); }
#endif

}  // namespace
}  // namespace lddgan
