#include "lddgan/residual_scale.h"

#include "torch_common.h"

namespace lddgan {
namespace {

using Optional = std::optional<at::Tensor>;

// x, h and h2 share dtype, device, shape and dense strides (ops/residual_scale.py sees to it).
ResidualScaleArgs prepare(const at::Tensor& x, const at::Tensor& h, const Optional& h2,
                          const Optional& bias, double factor, at::Tensor& out) {
  TORCH_CHECK(x.sizes() == h.sizes() && same_layout(x, h),
              "residual_scale: h must match x's shape and layout");
  TORCH_CHECK(!h2 || (x.sizes() == h2->sizes() && same_layout(x, *h2)),
              "residual_scale: h2 must match x's shape and layout");
  TORCH_CHECK(!bias || (x.dim() == 4 && bias->dim() == 1 && bias->size(0) == x.size(1)),
              "residual_scale: bias must hold one value a channel of x");
  out = allocate_like(x);
  const bool planes = bias && x.is_contiguous();
  return {x.const_data_ptr(),
          h.const_data_ptr(),
          h2 ? h2->const_data_ptr() : nullptr,
          bias ? bias->const_data_ptr() : nullptr,
          out.mutable_data_ptr(),
          x.numel(),
          bias ? x.size(1) : 1,
          planes ? x.size(2) * x.size(3) : 1,
          float(factor),
          dtype_of(x),
          bias ? dtype_of(*bias) : dtype_of(x)};
}

at::Tensor residual_scale_cpu(const at::Tensor& x, const at::Tensor& h, const Optional& h2,
                              const Optional& bias, double factor) {
  at::Tensor out;
  Optional wide;
  if (bias) wide = bias->to(at::kFloat).contiguous();
  cpu::residual_scale(prepare(x, h, h2, wide, factor, out));
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "residual_scale(Tensor x, Tensor h, Tensor? h2=None, Tensor? bias=None, "
      "float factor=0.7071067811865476) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) { m.impl("residual_scale", residual_scale_cpu); }

#ifdef LDDGAN_CUDA
at::Tensor residual_scale_on_cuda(const at::Tensor& x, const at::Tensor& h, const Optional& h2,
                                  const Optional& bias, double factor) {
  at::Tensor out;
  Optional dense_bias;
  if (bias) dense_bias = bias->contiguous();
  launch(residual_scale_cuda, prepare(x, h, h2, dense_bias, factor, out), x);
  return out;
}
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) { m.impl("residual_scale", residual_scale_on_cuda); }
#endif

}  // namespace
}  // namespace lddgan
