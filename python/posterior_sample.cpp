#include "lddgan/posterior_sample.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/index_select.h>
#include <torch/csrc/autograd/custom_function.h>

#include "diffusion_common.h"

namespace lddgan {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// x0, x_next and noise share dtype, device, shape and dense strides; t and seeds are contiguous
// int64 (ops/posterior_sample.py sees to it).
PosteriorSampleArgs prepare(const at::Tensor& x0, const at::Tensor& x_next, const at::Tensor& t,
                            const at::Tensor& coef1, const at::Tensor& coef2,
                            const at::Tensor& log_variance, const OptionalTensor& seeds,
                            const OptionalTensor& noise, int64_t stream, int64_t step,
                            at::Tensor& out) {
  TORCH_CHECK(x0.sizes() == x_next.sizes() && same_layout(x0, x_next),
              "posterior_sample: x_next must match x0's shape and layout");
  TORCH_CHECK(seeds.has_value() != noise.has_value(), "posterior_sample: give seeds or noise");
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
  check_t("posterior_sample", t, coef1.numel());
  at::Tensor out;
  cpu::posterior_sample(
      prepare(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step, out));
  return out;
}

std::tuple<at::Tensor, at::Tensor> posterior_sample_backward_cpu(const at::Tensor& grad,
                                                                 const at::Tensor& t,
                                                                 const at::Tensor& coef1,
                                                                 const at::Tensor& coef2) {
  check_t("posterior_sample", t, coef1.numel());
  at::Tensor grad_x0, grad_x_next;
  cpu::posterior_sample_backward(prepare_backward(grad, t, coef1, coef2, grad_x0, grad_x_next));
  return {grad_x0, grad_x_next};
}

// The gradient is attached here and not in Python: a Python autograd.Function costs more than the
// kernel on small batches.
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor call_forward(const at::Tensor& x0, const at::Tensor& x_next, const at::Tensor& t,
                        const at::Tensor& coef1, const at::Tensor& coef2,
                        const at::Tensor& log_variance, const OptionalTensor& seeds,
                        const OptionalTensor& noise, int64_t stream, int64_t step) {
  static auto op = find_op<decltype(posterior_sample_cpu)>(LDDGAN_NAMESPACE "::posterior_sample");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step);
}

struct Draw : torch::autograd::Function<Draw> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x0,
                            const at::Tensor& x_next, const at::Tensor& t, const at::Tensor& coef1,
                            const at::Tensor& coef2, const at::Tensor& log_variance,
                            const OptionalTensor& seeds, const OptionalTensor& noise,
                            int64_t stream, int64_t step) {
    context->save_for_backward({t, coef1, coef2});
    return call_forward(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    auto saved = context->get_saved_variables();
    const at::Tensor &grad = grads[0], &t = saved[0], &coef1 = saved[1], &coef2 = saved[2];
    variable_list out(10);             // of x0 and x_next alone
    if (at::GradMode::is_enabled()) {  // to be differentiated again, which the plain form can be
      auto times = [&](const at::Tensor& table) {
        return (table.index_select(0, t).view({-1, 1, 1, 1}) * grad).to(grad.scalar_type());
      };
      out[0] = times(coef1);
      out[1] = times(coef2);
    } else {
      static auto op = find_op<decltype(posterior_sample_backward_cpu)>(
          LDDGAN_NAMESPACE "::posterior_sample_backward");
      at::AutoDispatchBelowADInplaceOrView guard;
      std::tie(out[0], out[1]) = op.call(dense(grad), t, coef1, coef2);
    }
    return out;
  }
};

at::Tensor with_gradient(const at::Tensor& x0, const at::Tensor& x_next, const at::Tensor& t,
                         const at::Tensor& coef1, const at::Tensor& coef2,
                         const at::Tensor& log_variance, const OptionalTensor& seeds,
                         const OptionalTensor& noise, int64_t stream, int64_t step) {
  if (wants_gradient(x0, x_next)) {
    return Draw::apply(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step);
  }
  return call_forward(x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step);
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
}  // namespace lddgan
