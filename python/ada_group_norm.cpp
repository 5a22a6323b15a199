#include <ATen/ops/sum.h>

#include "node.h"
#include "norm_common.h"

namespace lddgan::ada_group_norm {
namespace {

// The output and its statistics, which the CPU's kernels need not keep (then an empty tensor).
template <typename Run>
std::tuple<at::Tensor, at::Tensor> forward(const NormCall& n, bool keep_statistics,
                                           const Run& run) {
  NormArgs args = norm_args(n);
  AdaGroupNormArgs& a = args.kernel;
  auto layout = a.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  at::Tensor out = allocate({a.samples, a.channels1 + a.channels2, n.x.size(2), n.x.size(3)},
                            n.x.options(), layout);
  at::Tensor statistics;
  if (keep_statistics) {
    statistics = allocate({2, a.samples, a.groups}, n.x.options().dtype(at::kFloat));
    attach_statistics(a, statistics.mutable_data_ptr<float>());
  }
  if (out.numel() == 0) return {out, statistics};
  a.out = out.mutable_data_ptr();
  run(a);
  return {out, statistics};
}

// Per-sample gradients of rows: in their dtype, or float32 to be summed over samples.
at::Tensor empty_rows(const at::Tensor& rows, int64_t samples) {
  auto options = rows.dim() == 1 ? rows.options().dtype(at::kFloat) : rows.options();
  return allocate({samples, rows.size(-1)}, options);
}

// In double: what samples add may all but cancel.
at::Tensor total(const at::Tensor& per_sample, const at::Tensor& rows) {
  return rows.dim() == 1 ? per_sample.sum(0, false, at::kDouble).to(rows.scalar_type())
                         : per_sample;
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Gradients of x, x2, bias, scale, shift; empty tensors for an absent x2 or bias.
template <typename Run>
Gradients backward(const at::Tensor& grad_out, const NormCall& n, const at::Tensor& statistics,
                   const Run& run) {
  NormArgs args = norm_args(n);
  AdaGroupNormBackwardArgs b{};
  AdaGroupNormArgs& a = b.forward = args.kernel;
  TORCH_CHECK(same_layout(n.x, grad_out) && grad_out.scalar_type() == n.x.scalar_type() &&
                  grad_out.numel() == a.samples * (a.channels1 + a.channels2) * a.pixels &&
                  statistics.numel() == 2 * a.samples * a.groups,
              "ada_group_norm: grad_out must match the output's layout, got ", grad_out.sizes());
  auto none = [&] { return allocate({0}, n.x.options()); };
  at::Tensor grad_x = allocate_like(n.x), grad_x2 = n.x2 ? allocate_like(*n.x2) : none();
  at::Tensor grad_scale = empty_rows(n.scale, a.samples);
  at::Tensor grad_shift = empty_rows(n.shift, a.samples);
  at::Tensor grad_bias = n.bias ? empty_rows(*n.bias, a.samples) : none();
  if (grad_out.numel() == 0) {
    grad_scale.zero_();
    grad_shift.zero_();
    grad_bias.zero_();
  } else {
    attach_statistics(a, statistics.mutable_data_ptr<float>());
    b.grad_out = grad_out.const_data_ptr();
    b.grad_x = grad_x.mutable_data_ptr();
    b.grad_x2 = n.x2 ? grad_x2.mutable_data_ptr() : nullptr;
    b.grad_scale = grad_scale.mutable_data_ptr();
    b.grad_shift = grad_shift.mutable_data_ptr();
    b.grad_bias = n.bias ? grad_bias.mutable_data_ptr() : nullptr;
    b.grad_scale_dtype = dtype_of(grad_scale);
    b.grad_shift_dtype = dtype_of(grad_shift);
    b.grad_bias_dtype = dtype_of(grad_bias);
    run(b);
  }
  return {grad_x, grad_x2, grad_bias, total(grad_scale, n.scale), total(grad_shift, n.shift)};
}

// The operators' functions out of those that take a NormCall.
template <auto function>
auto spelled(const at::Tensor& x, const Optional& x2, const Optional& bias, const at::Tensor& scale,
             const at::Tensor& shift, int64_t num_groups, double eps, bool silu,
             at::OptionalIntArrayRef plan, const Optional& moments) {
  return function({x, x2, bias, scale, shift, num_groups, eps, silu, plan, moments});
}

template <auto function>
Gradients spelled_backward(const at::Tensor& grad_out, const at::Tensor& x, const Optional& x2,
                           const Optional& bias, const at::Tensor& scale, const at::Tensor& shift,
                           const at::Tensor& statistics, int64_t num_groups, bool silu,
                           at::OptionalIntArrayRef plan) {
  return function(grad_out, {x, x2, bias, scale, shift, num_groups, 0, silu, plan, kNone},
                  statistics);
}

at::Tensor on_cpu(const NormCall& n) {
  return std::get<0>(forward(n, false, cpu::ada_group_norm_forward));
}

std::tuple<at::Tensor, at::Tensor> forward_on_cpu(const NormCall& n) {
  return forward(n, true, cpu::ada_group_norm_forward);
}

Gradients backward_on_cpu(const at::Tensor& grad_out, const NormCall& n,
                          const at::Tensor& statistics) {
  return backward(grad_out, n, statistics, cpu::ada_group_norm_backward);
}

#ifdef LDDGAN_CUDA
// `given` is (onchip, groups, parts) of forward and of backward, from ops/_norm_plan.py.
// `workspace` is made where a plan needs one, unless it holds given moments.
AdaGroupNormPlan plan_of(at::OptionalIntArrayRef given, size_t first, const AdaGroupNormArgs& a,
                         int64_t floats_per_group, const at::Tensor& x, at::Tensor& workspace) {
  const at::IntArrayRef plan = given.value_or(at::IntArrayRef{});
  TORCH_CHECK(plan.size() == 6, "ada_group_norm: plan must have 6 numbers, got ", plan.size());
  AdaGroupNormPlan p{plan[first] != 0, int(plan[first + 1]), int(plan[first + 2]), nullptr};
  TORCH_CHECK(p.groups > 0 && a.groups % p.groups == 0 && p.parts > 0,
              "ada_group_norm: plan does not fit ", a.groups, " groups: ", plan);
  const int64_t floats = a.samples * a.groups * p.parts * floats_per_group;
  if (workspace.defined()) {
    TORCH_CHECK(!p.onchip && workspace.scalar_type() == at::kFloat && workspace.numel() == floats,
                "ada_group_norm: moments do not fit the plan ", plan, ", got ", workspace.sizes());
  } else if (!p.onchip) {
    workspace = allocate({floats}, x.options().dtype(at::kFloat));
  }
  if (!p.onchip) {
    p.workspace = workspace.mutable_data_ptr<float>();
  }
  return p;
}

std::tuple<at::Tensor, at::Tensor> forward_on_cuda(const NormCall& n) {
  return forward(n, true, [&](const AdaGroupNormArgs& a) {
    at::Tensor workspace;
    if (n.moments) workspace = n.moments->contiguous();
    AdaGroupNormPlan p = plan_of(n.plan, 0, a, 2, n.x, workspace);
    auto run = n.moments ? ada_group_norm_apply_cuda : ada_group_norm_forward_cuda;
    launch([&](void* stream) { return run(a, p, stream); }, n.x);
  });
}

at::Tensor on_cuda(const NormCall& n) { return std::get<0>(forward_on_cuda(n)); }

Gradients backward_on_cuda(const at::Tensor& grad_out, const NormCall& n,
                           const at::Tensor& statistics) {
  return backward(grad_out, n, statistics, [&](const AdaGroupNormBackwardArgs& b) {
    const AdaGroupNormArgs& a = b.forward;
    const int64_t per_group = 3 * (a.channels1 + a.channels2) / a.groups;
    at::Tensor workspace;
    AdaGroupNormPlan p = plan_of(n.plan, 3, a, per_group, n.x, workspace);
    launch([&](void* stream) { return ada_group_norm_backward_cuda(b, p, stream); }, n.x);
  });
}
#endif

// The gradient is attached here and not in Python: a Python autograd.Function costs more than the
// kernel on the small maps of the generator.
Optional optional(const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; }

struct NormNode : Node {
  SavedVariable x, x2, bias, scale, shift, statistics;
  int64_t num_groups;
  bool silu;
  std::vector<int64_t> plan;  // empty: none

  std::string name() const override { return "AdaGroupNormBackward"; }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x, &x2, &bias, &scale, &shift, &statistics}) saved->reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    static auto op = find_op<decltype(spelled_backward<backward_on_cpu>)>(
        LDDGAN_NAMESPACE "::ada_group_norm_backward");
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(5);
    if (!grads[0].defined()) return out;
    const at::Tensor x_ = x.unpack(), scale_ = scale.unpack(), shift_ = shift.unpack();
    const Optional x2_ = optional(x2.unpack()), bias_ = optional(bias.unpack());
    auto layout =
        x_.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
    const at::Tensor grad_out = grads[0].contiguous(layout);
    const at::OptionalIntArrayRef none;
    std::tie(out[0], out[1], out[2], out[3], out[4]) = below_autograd([&] {
      return op.call(grad_out, x_, x2_, bias_, scale_, shift_, statistics.unpack(), num_groups,
                     silu, plan.empty() ? none : at::OptionalIntArrayRef(plan));
    });
    if (!x2_) out[1] = at::Tensor();
    if (!bias_) out[2] = at::Tensor();
    first_order_only("ada_group_norm", out, grad_out, x_, x2_, bias_, scale_, shift_);
    return out;
  }
};

// Kept off the tape where nothing needs it: an autograd node costs as much as a small map.
at::Tensor with_gradient(const NormCall& n) {
  auto node = node_for<NormNode>(n.x, n.x2, n.bias, n.scale, n.shift);
  if (!node) {
    static auto op = find_op<NormOperator<at::Tensor>>(LDDGAN_NAMESPACE "::ada_group_norm");
    return below_autograd([&] { return call(op, n); });
  }
  static auto op = find_op<NormOperator<std::tuple<at::Tensor, at::Tensor>>>(
      LDDGAN_NAMESPACE "::ada_group_norm_forward");
  auto [out, statistics] = below_autograd([&] { return call(op, n); });
  node->x = SavedVariable(n.x, false);
  node->x2 = SavedVariable(n.x2, false);
  node->bias = SavedVariable(n.bias, false);
  node->scale = SavedVariable(n.scale, false);
  node->shift = SavedVariable(n.shift, false);
  node->statistics = SavedVariable(statistics, false);
  node->num_groups = n.num_groups;
  node->silu = n.silu;
  if (n.plan) node->plan = n.plan->vec();
  set_history(out, node);
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "ada_group_norm(Tensor x, Tensor? x2, Tensor? bias, Tensor scale, Tensor shift, "
      "int num_groups, float eps, bool silu, int[]? plan=None, Tensor? moments=None) -> Tensor");
  // -> out, statistics (2, N, num_groups): mean and rstd of x + bias
  m.def(
      "ada_group_norm_forward(Tensor x, Tensor? x2, Tensor? bias, Tensor scale, Tensor shift, "
      "int num_groups, float eps, bool silu, int[]? plan=None, Tensor? moments=None) "
      "-> (Tensor, Tensor)");
  // -> gradients of x, x2, bias, scale, shift
  m.def(
      "ada_group_norm_backward(Tensor grad_out, Tensor x, Tensor? x2, Tensor? bias, "
      "Tensor scale, Tensor shift, Tensor statistics, int num_groups, bool silu, int[]? plan=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(lddgan, Autograd, m) { m.impl("ada_group_norm", spelled<with_gradient>); }
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("ada_group_norm", spelled<on_cpu>);
  m.impl("ada_group_norm_forward", spelled<forward_on_cpu>);
  m.impl("ada_group_norm_backward", spelled_backward<backward_on_cpu>);
}
#ifdef LDDGAN_CUDA
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) {
  m.impl("ada_group_norm", spelled<on_cuda>);
  m.impl("ada_group_norm_forward", spelled<forward_on_cuda>);
  m.impl("ada_group_norm_backward", spelled_backward<backward_on_cuda>);
}
#endif

}  // namespace
}  // namespace lddgan::ada_group_norm
