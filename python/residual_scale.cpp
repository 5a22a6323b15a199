#include "lddgan/residual_scale.h"

#include "torch_common.h"

namespace lddgan::residual_scale {
namespace {

using Optional = std::optional<at::Tensor>;

// x, h and h2 share dtype, device, shape and dense strides (ops/residual_scale.py sees to it).
ResidualScaleArgs prepare(const at::Tensor& x, const at::Tensor& h, const Optional& h2,
                          const Optional& bias, double factor, at::Tensor& out) {
  TORCH_CHECK(alike(x, h), "residual_scale: h must match x's shape, dtype and layout");
  TORCH_CHECK(!h2 || alike(x, *h2), "residual_scale: h2 must match x's shape, dtype and layout");
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
  // -> out, its partial moments (N, num_groups, parts, 2); on a GPU alone
  m.def(
      "residual_scale_moments(Tensor x, Tensor h, Tensor? h2, Tensor? bias, float factor, "
      "int num_groups, int[] plan) -> (Tensor, Tensor)");
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

// `plan` is (groups of a block, parts), from ops/_norm_plan.py.
std::tuple<at::Tensor, at::Tensor> residual_scale_moments_on_cuda(
    const at::Tensor& x, const at::Tensor& h, const Optional& h2, const Optional& bias,
    double factor, int64_t num_groups, at::IntArrayRef plan) {
  TORCH_CHECK(x.dim() == 4 && num_groups > 0 && x.size(1) % num_groups == 0,
              "residual_scale_moments: num_groups must be a divisor of x's channels, got ",
              num_groups);
  TORCH_CHECK(plan.size() == 2 && plan[0] > 0 && num_groups % plan[0] == 0 && plan[1] > 0,
              "residual_scale_moments: plan does not fit ", num_groups, " groups: ", plan);
  at::Tensor out;
  Optional dense_bias;
  if (bias) dense_bias = bias->contiguous();
  ResidualScaleMomentsArgs m{};
  m.sum = prepare(x, h, h2, dense_bias, factor, out);
  m.sum.channels = x.size(1);
  m.samples = x.size(0);
  m.pixels = x.size(2) * x.size(3);
  m.groups = num_groups;
  m.channels_last = !x.is_contiguous();
  m.block_groups = int(plan[0]);
  m.parts = int(plan[1]);
  at::Tensor moments = allocate({m.samples, num_groups, plan[1], 2}, x.options().dtype(at::kFloat));
  if (out.numel() == 0) return {out, moments.zero_()};
  m.moments = moments.mutable_data_ptr<float>();
  launch(residual_scale_moments_cuda, m, x);
  return {out, moments};
}
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) {
  m.impl("residual_scale", residual_scale_on_cuda);
  m.impl("residual_scale_moments", residual_scale_moments_on_cuda);
}
#endif

}  // namespace
}  // namespace lddgan::residual_scale
