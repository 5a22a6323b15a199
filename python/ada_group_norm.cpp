#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/sum.h>
#include <torch/csrc/autograd/custom_function.h>

#include "node.h"
#include "norm_common.h"

namespace lddgan {
namespace {

at::Tensor empty_output(const AdaGroupNormArgs& a, const at::Tensor& x) {
  auto layout = a.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  return allocate({a.samples, a.channels1 + a.channels2, x.size(2), x.size(3)}, x.options(),
                  layout);
}

template <typename Launch>
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& x, const Optional& x2,
                                           const Optional& bias, const at::Tensor& scale,
                                           const at::Tensor& shift, int64_t num_groups, double eps,
                                           bool silu, const Launch& run) {
  AdaGroupNormArgs a = norm_args(x, x2, bias, scale, shift, num_groups, silu);
  at::Tensor out = empty_output(a, x);
  at::Tensor statistics = allocate({2, a.samples, a.groups}, x.options().dtype(at::kFloat));
  if (out.numel() == 0) return {out, statistics};
  a.out = out.mutable_data_ptr();
  a.eps = float(eps);
  attach_statistics(a, statistics.mutable_data_ptr<float>());
  run(a);
  return {out, statistics};
}

// Per-sample gradients of rows: in their dtype, or float32 to be summed over samples.
at::Tensor empty_rows(const at::Tensor& rows, int64_t samples) {
  auto options = rows.dim() == 1 ? rows.options().dtype(at::kFloat) : rows.options();
  return allocate({samples, rows.size(-1)}, options);
}

at::Tensor total(const at::Tensor& per_sample, const at::Tensor& rows) {
  return rows.dim() == 1 ? per_sample.sum(0).to(rows.scalar_type()) : per_sample;
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Gradients of x, x2, bias, scale, shift; empty tensors for an absent x2 or bias.
template <typename Launch>
Gradients backward(const at::Tensor& grad_out, const at::Tensor& x, const Optional& x2,
                   const Optional& bias, const at::Tensor& scale, const at::Tensor& shift,
                   const at::Tensor& statistics, int64_t num_groups, bool silu, const Launch& run) {
  AdaGroupNormBackwardArgs b{};
  AdaGroupNormArgs& a = b.forward = norm_args(x, x2, bias, scale, shift, num_groups, silu);
  TORCH_CHECK(same_layout(x, grad_out) && grad_out.scalar_type() == x.scalar_type() &&
                  grad_out.numel() == a.samples * (a.channels1 + a.channels2) * a.pixels &&
                  statistics.numel() == 2 * a.samples * a.groups,
              "ada_group_norm: grad_out must match the output's layout, got ", grad_out.sizes());
  auto none = [&] { return allocate({0}, x.options()); };
  at::Tensor grad_x = allocate_like(x), grad_x2 = x2 ? allocate_like(*x2) : none();
  at::Tensor grad_scale = empty_rows(scale, a.samples), grad_shift = empty_rows(shift, a.samples);
  at::Tensor grad_bias = bias ? empty_rows(*bias, a.samples) : none();
  if (grad_out.numel() == 0) {
    grad_scale.zero_();
    grad_shift.zero_();
    grad_bias.zero_();
  } else {
    attach_statistics(a, statistics.mutable_data_ptr<float>());
    b.grad_out = grad_out.const_data_ptr();
    b.grad_x = grad_x.mutable_data_ptr();
    b.grad_x2 = x2 ? grad_x2.mutable_data_ptr() : nullptr;
    b.grad_scale = grad_scale.mutable_data_ptr();
    b.grad_shift = grad_shift.mutable_data_ptr();
    b.grad_bias = bias ? grad_bias.mutable_data_ptr() : nullptr;
    b.grad_scale_dtype = dtype_of(grad_scale);
    b.grad_shift_dtype = dtype_of(grad_shift);
    b.grad_bias_dtype = dtype_of(grad_bias);
    run(b);
  }
  return {grad_x, grad_x2, grad_bias, total(grad_scale, scale), total(grad_shift, shift)};
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(const at::Tensor& x, const Optional& x2,
                                               const Optional& bias, const at::Tensor& scale,
                                               const at::Tensor& shift, int64_t num_groups,
                                               double eps, bool silu, at::IntArrayRef,
                                               const Optional&) {
  return forward(x, x2, adjacent(bias), adjacent(scale), adjacent(shift), num_groups, eps, silu,
                 cpu::ada_group_norm_forward);
}

Gradients backward_cpu(const at::Tensor& grad_out, const at::Tensor& x, const Optional& x2,
                       const Optional& bias, const at::Tensor& scale, const at::Tensor& shift,
                       const at::Tensor& statistics, int64_t num_groups, bool silu,
                       at::IntArrayRef) {
  return backward(grad_out, x, x2, adjacent(bias), adjacent(scale), adjacent(shift), statistics,
                  num_groups, silu, cpu::ada_group_norm_backward);
}

// The gradient is attached here and not in Python: a Python autograd.Function costs more than the
// kernel on the small maps of the generator.
using torch::autograd::AutogradContext;

std::tuple<at::Tensor, at::Tensor> call_forward(const at::Tensor& x, const Optional& x2,
                                                const Optional& bias, const at::Tensor& scale,
                                                const at::Tensor& shift, int64_t num_groups,
                                                double eps, bool silu, at::IntArrayRef plan,
                                                const Optional& moments) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow(LDDGAN_NAMESPACE "::ada_group_norm_forward", "")
                       .typed<decltype(forward_cpu)>();
  return op.call(x, x2, bias, scale, shift, num_groups, eps, silu, plan, moments);
}

Gradients call_backward(const at::Tensor& grad_out, const at::Tensor& x, const Optional& x2,
                        const Optional& bias, const at::Tensor& scale, const at::Tensor& shift,
                        const at::Tensor& statistics, int64_t num_groups, bool silu,
                        at::IntArrayRef plan) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow(LDDGAN_NAMESPACE "::ada_group_norm_backward", "")
                       .typed<decltype(backward_cpu)>();
  return op.call(grad_out, x, x2, bias, scale, shift, statistics, num_groups, silu, plan);
}

Optional optional(const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; }

struct Backward : torch::autograd::Function<Backward> {
  static variable_list forward(AutogradContext*, const at::Tensor& grad_out, const at::Tensor& x,
                               const Optional& x2, const Optional& bias, const at::Tensor& scale,
                               const at::Tensor& shift, const at::Tensor& statistics,
                               int64_t num_groups, bool silu, at::IntArrayRef plan) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [x_, x2_, bias_, scale_, shift_] =
        call_backward(grad_out, x, x2, bias, scale, shift, statistics, num_groups, silu, plan);
    return {x_, x2_, bias_, scale_, shift_};
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "ada_group_norm: its gradient cannot be differentiated again on this backend; "
                "use backend='reference'");
  }
};

struct NormNode : torch::autograd::Node {
  SavedVariable x, x2, bias, scale, shift, statistics;
  int64_t num_groups;
  bool silu;
  std::vector<int64_t> plan;

  std::string name() const override { return "AdaGroupNormBackward"; }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x, &x2, &bias, &scale, &shift, &statistics}) saved->reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(5);
    const at::Tensor x_ = x.unpack(), scale_ = scale.unpack(), shift_ = shift.unpack();
    const Optional x2_ = optional(x2.unpack()), bias_ = optional(bias.unpack());
    const at::Tensor statistics_ = statistics.unpack();
    auto layout =
        x_.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
    const at::Tensor grad_out = grads[0].contiguous(layout);
    if (at::GradMode::is_enabled()) {
      grads = Backward::apply(grad_out, x_, x2_, bias_, scale_, shift_, statistics_, num_groups,
                              silu, at::IntArrayRef(plan));
    } else {
      at::AutoDispatchBelowADInplaceOrView guard;
      Gradients all = call_backward(grad_out, x_, x2_, bias_, scale_, shift_, statistics_,
                                    num_groups, silu, plan);
      grads.resize(5);
      std::tie(grads[0], grads[1], grads[2], grads[3], grads[4]) = std::move(all);
    }
    if (!x2_) grads[1] = at::Tensor();
    if (!bias_) grads[2] = at::Tensor();
    return std::move(grads);
  }
};

// Kept off the tape where nothing needs it: an autograd node costs as much as a small map.
at::Tensor with_gradient(const at::Tensor& x, const Optional& x2, const Optional& bias,
                         const at::Tensor& scale, const at::Tensor& shift, int64_t num_groups,
                         double eps, bool silu, at::IntArrayRef plan, const Optional& moments) {
  auto needs = [](const Optional& t) { return t && t->requires_grad(); };
  if (at::GradMode::is_enabled() && (x.requires_grad() || scale.requires_grad() ||
                                     shift.requires_grad() || needs(x2) || needs(bias))) {
    auto node = make_node<NormNode>(x, x2, bias, scale, shift);
    at::Tensor out, statistics;
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      std::tie(out, statistics) =
          call_forward(x, x2, bias, scale, shift, num_groups, eps, silu, plan, moments);
    }
    node->x = SavedVariable(x, false);
    node->x2 = SavedVariable(x2, false);
    node->bias = SavedVariable(bias, false);
    node->scale = SavedVariable(scale, false);
    node->shift = SavedVariable(shift, false);
    node->statistics = SavedVariable(statistics, false);
    node->num_groups = num_groups;
    node->silu = silu;
    node->plan = plan.vec();
    torch::autograd::set_history(out, node);
    return out;
  }
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow(LDDGAN_NAMESPACE "::ada_group_norm", "")
                       .typed<decltype(with_gradient)>();
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, x2, bias, scale, shift, num_groups, eps, silu, plan, moments);
}

at::Tensor without_gradient_cpu(const at::Tensor& x, const Optional& x2, const Optional& bias,
                                const at::Tensor& scale, const at::Tensor& shift,
                                int64_t num_groups, double eps, bool silu, at::IntArrayRef,
                                const Optional&) {
  const at::Tensor scale_ = adjacent(scale), shift_ = adjacent(shift);
  const Optional bias_ = adjacent(bias);
  AdaGroupNormArgs a = norm_args(x, x2, bias_, scale_, shift_, num_groups, silu);
  at::Tensor out = empty_output(a, x);
  if (out.numel() == 0) return out;
  a.out = out.mutable_data_ptr();
  a.eps = float(eps);
  cpu::ada_group_norm_forward(a);
  return out;
}

#ifdef LDDGAN_CUDA
at::Tensor without_gradient(const at::Tensor& x, const Optional& x2, const Optional& bias,
                            const at::Tensor& scale, const at::Tensor& shift, int64_t num_groups,
                            double eps, bool silu, at::IntArrayRef plan, const Optional& moments) {
  return std::get<0>(call_forward(x, x2, bias, scale, shift, num_groups, eps, silu, plan, moments));
}

// `plan` is (onchip, groups, parts) of forward and of backward, from ops/_norm_plan.py. `workspace`
// is made where a plan needs one, unless it holds given moments.
AdaGroupNormPlan plan_of(at::IntArrayRef plan, size_t first, const AdaGroupNormArgs& a,
                         int64_t floats_per_group, const at::Tensor& x, at::Tensor& workspace) {
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

std::tuple<at::Tensor, at::Tensor> forward_on_cuda(const at::Tensor& x, const Optional& x2,
                                                   const Optional& bias, const at::Tensor& scale,
                                                   const at::Tensor& shift, int64_t num_groups,
                                                   double eps, bool silu, at::IntArrayRef plan,
                                                   const Optional& moments) {
  return forward(x, x2, adjacent(bias), adjacent(scale), adjacent(shift), num_groups, eps, silu,
                 [&](const AdaGroupNormArgs& a) {
                   at::Tensor workspace;
                   if (moments) workspace = moments->contiguous();
                   AdaGroupNormPlan p = plan_of(plan, 0, a, 2, x, workspace);
                   auto run = moments ? ada_group_norm_apply_cuda : ada_group_norm_forward_cuda;
                   launch([&](void* stream) { return run(a, p, stream); }, x);
                 });
}

Gradients backward_on_cuda(const at::Tensor& grad_out, const at::Tensor& x, const Optional& x2,
                           const Optional& bias, const at::Tensor& scale, const at::Tensor& shift,
                           const at::Tensor& statistics, int64_t num_groups, bool silu,
                           at::IntArrayRef plan) {
  return backward(grad_out, x, x2, adjacent(bias), adjacent(scale), adjacent(shift), statistics,
                  num_groups, silu, [&](const AdaGroupNormBackwardArgs& b) {
                    const AdaGroupNormArgs& a = b.forward;
                    int64_t per_group = 3 * (a.channels1 + a.channels2) / a.groups;
                    at::Tensor workspace;
                    AdaGroupNormPlan p = plan_of(plan, 3, a, per_group, x, workspace);
                    launch([&](void* stream) { return ada_group_norm_backward_cuda(b, p, stream); },
                           x);
                  });
}
#endif

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "ada_group_norm(Tensor x, Tensor? x2, Tensor? bias, Tensor scale, Tensor shift, "
      "int num_groups, float eps, bool silu, int[] plan=[], Tensor? moments=None) -> Tensor");
  // -> out, statistics (2, N, num_groups): mean and rstd of x + bias
  m.def(
      "ada_group_norm_forward(Tensor x, Tensor? x2, Tensor? bias, Tensor scale, Tensor shift, "
      "int num_groups, float eps, bool silu, int[] plan=[], Tensor? moments=None) "
      "-> (Tensor, Tensor)");
  // -> gradients of x, x2, bias, scale, shift
  m.def(
      "ada_group_norm_backward(Tensor grad_out, Tensor x, Tensor? x2, Tensor? bias, "
      "Tensor scale, Tensor shift, Tensor statistics, int num_groups, bool silu, int[] plan=[]) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(lddgan, Autograd, m) { m.impl("ada_group_norm", with_gradient); }
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("ada_group_norm", without_gradient_cpu);
  m.impl("ada_group_norm_forward", forward_cpu);
  m.impl("ada_group_norm_backward", backward_cpu);
}
#ifdef LDDGAN_CUDA
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) {
  m.impl("ada_group_norm", without_gradient);
  m.impl("ada_group_norm_forward", forward_on_cuda);
  m.impl("ada_group_norm_backward", backward_on_cuda);
}
#endif

}  // namespace
}  // namespace lddgan
