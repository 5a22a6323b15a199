#include "lddgan/posterior_sample.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/index_select.h>

#include "diffusion_common.h"
#include "node.h"

namespace lddgan::posterior_sample {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// x0, x_next and noise share dtype, device, shape and dense strides; t and seeds are contiguous
// int64 (ops/posterior_sample.py sees to it).
PosteriorSampleArgs prepare(const at::Tensor& x0, const at::Tensor& x_next, const at::Tensor& t,
                            const at::Tensor& coef1, const at::Tensor& coef2,
                            const at::Tensor& log_variance, const OptionalTensor& seeds,
                            const OptionalTensor& noise, int64_t stream, int64_t step,
                            at::Tensor& out) {
  const char* op = "posterior_sample";
  check_image(op, x0);
  check_alike(op, "x_next", x_next, x0);
  check_alike(op, "noise", noise, x0);
  check_row(op, "t", t, x0.size(0), x0);
  check_row(op, "seeds", seeds, x0.size(0), x0);
  check_row(op, "coef1", coef1, coef1.numel(), x0);
  check_row(op, "coef2", coef2, coef1.numel(), x0);
  check_row(op, "log_variance", log_variance, coef1.numel(), x0);
  TORCH_CHECK_VALUE(seeds.has_value() != noise.has_value(),
                    "posterior_sample: give seeds or noise");
  out = allocate_like(x0);
  return {x0.const_data_ptr(),
          x_next.const_data_ptr(),
          t.const_data_ptr<int64_t>(),
          coef1.const_data_ptr<float>(),
          coef2.const_data_ptr<float>(),
          log_variance.const_data_ptr<float>(),
          data_or_null<int64_t>(seeds),
          data_or_null<void>(noise),
          out.mutable_data_ptr(),
          batch_of(x0),
          coef1.numel(),
          uint32_t(stream),
          uint32_t(step),
          dtype_of(x0)};
}

PosteriorSampleBackwardArgs prepare_backward(const at::Tensor& grad, const at::Tensor& t,
                                             const at::Tensor& coef1, const at::Tensor& coef2,
                                             at::Tensor& grad_x0, at::Tensor& grad_x_next) {
  const char* op = "posterior_sample";
  check_image(op, grad);
  check_row(op, "t", t, grad.size(0), grad);
  check_row(op, "coef1", coef1, coef1.numel(), grad);
  check_row(op, "coef2", coef2, coef1.numel(), grad);
  grad_x0 = allocate_like(grad);
  grad_x_next = allocate_like(grad);
  Batch batch = batch_of(grad);
  return {grad.const_data_ptr(),
          t.const_data_ptr<int64_t>(),
          coef1.const_data_ptr<float>(),
          coef2.const_data_ptr<float>(),
          grad_x0.mutable_data_ptr(),
          grad_x_next.mutable_data_ptr(),
          batch.samples,
          batch.channels * batch.pixels,
          coef1.numel(),
          dtype_of(grad)};
}

at::Tensor posterior_sample_cpu(const at::Tensor& x0, const at::Tensor& x_next, const at::Tensor& t,
                                const at::Tensor& coef1, const at::Tensor& coef2,
                                const at::Tensor& log_variance, const OptionalTensor& seeds,
                                const OptionalTensor& noise, int64_t stream, int64_t step) {
  at::Tensor out;
  PosteriorSampleArgs args =
      prepare(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step, out);
  check_t("posterior_sample", t, coef1.numel());
  cpu::posterior_sample(args);
  return out;
}

std::tuple<at::Tensor, at::Tensor> posterior_sample_backward_cpu(const at::Tensor& grad,
                                                                 const at::Tensor& t,
                                                                 const at::Tensor& coef1,
                                                                 const at::Tensor& coef2) {
  at::Tensor grad_x0, grad_x_next;
  PosteriorSampleBackwardArgs args = prepare_backward(grad, t, coef1, coef2, grad_x0, grad_x_next);
  check_t("posterior_sample", t, coef1.numel());
  cpu::posterior_sample_backward(args);
  return {grad_x0, grad_x_next};
}

// The gradient is attached here and not in Python: a Python autograd.Function costs more than the
// kernel on small batches.
at::Tensor call_forward(const at::Tensor& x0, const at::Tensor& x_next, const at::Tensor& t,
                        const at::Tensor& coef1, const at::Tensor& coef2,
                        const at::Tensor& log_variance, const OptionalTensor& seeds,
                        const OptionalTensor& noise, int64_t stream, int64_t step) {
  static auto op = find_op<decltype(posterior_sample_cpu)>(LDDGAN_NAMESPACE "::posterior_sample");
  return op.call(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step);
}

struct DrawNode : Node {
  SavedVariable t, coef1, coef2;

  std::string name() const override { return "PosteriorSampleBackward"; }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&t, &coef1, &coef2}) saved->reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(2);
    const at::Tensor& grad = grads[0];
    if (!grad.defined()) return out;
    const at::Tensor t_ = t.unpack(), coef1_ = coef1.unpack(), coef2_ = coef2.unpack();
    if (at::GradMode::is_enabled()) {  // to be differentiated again, which the plain form can be
      auto times = [&](const at::Tensor& table) {
        return (table.index_select(0, t_).view({-1, 1, 1, 1}) * grad).to(grad.scalar_type());
      };
      out[0] = times(coef1_);
      out[1] = times(coef2_);
    } else {
      static auto op = find_op<decltype(posterior_sample_backward_cpu)>(
          LDDGAN_NAMESPACE "::posterior_sample_backward");
      std::tie(out[0], out[1]) =
          below_autograd([&] { return op.call(dense(grad), t_, coef1_, coef2_); });
    }
    return out;
  }
};

at::Tensor with_gradient(const at::Tensor& x0, const at::Tensor& x_next, const at::Tensor& t,
                         const at::Tensor& coef1, const at::Tensor& coef2,
                         const at::Tensor& log_variance, const OptionalTensor& seeds,
                         const OptionalTensor& noise, int64_t stream, int64_t step) {
  auto node = node_for<DrawNode>(x0, x_next);
  at::Tensor out = below_autograd([&] {
    return call_forward(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step);
  });
  if (node) {
    node->t = SavedVariable(t, false);
    node->coef1 = SavedVariable(coef1, false);
    node->coef2 = SavedVariable(coef2, false);
    set_history(out, node);
  }
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "posterior_sample(Tensor x0, Tensor x_next, Tensor t, Tensor coef1, Tensor coef2, "
      "Tensor log_variance, Tensor? seeds, Tensor? noise, int stream, int step) -> Tensor");
  m.def(
      "posterior_sample_backward(Tensor grad, Tensor t, Tensor coef1, Tensor coef2) -> "
      "(Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(lddgan, Autograd, m) { m.impl("posterior_sample", with_gradient); }
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("posterior_sample", posterior_sample_cpu);
  m.impl("posterior_sample_backward", posterior_sample_backward_cpu);
}

#ifdef LDDGAN_CUDA
at::Tensor posterior_sample_on_cuda(const at::Tensor& x0, const at::Tensor& x_next,
                                    const at::Tensor& t, const at::Tensor& coef1,
                                    const at::Tensor& coef2, const at::Tensor& log_variance,
                                    const OptionalTensor& seeds, const OptionalTensor& noise,
                                    int64_t stream, int64_t step) {
  at::Tensor out;
  launch(posterior_sample_cuda,
         prepare(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step, out), x0);
  return out;
}

std::tuple<at::Tensor, at::Tensor> posterior_sample_backward_on_cuda(const at::Tensor& grad,
                                                                     const at::Tensor& t,
                                                                     const at::Tensor& coef1,
                                                                     const at::Tensor& coef2) {
  at::Tensor grad_x0, grad_x_next;
  launch(posterior_sample_backward_cuda,
         prepare_backward(grad, t, coef1, coef2, grad_x0, grad_x_next), grad);
  return {grad_x0, grad_x_next};
}
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) {
  m.impl("posterior_sample", posterior_sample_on_cuda);
  m.impl("posterior_sample_backward", posterior_sample_backward_on_cuda);
}
#endif

}  // namespace
}  // namespace lddgan::posterior_sample
