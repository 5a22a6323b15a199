#include "cpu/bias_act.h"

#include "torch_common.h"

namespace lddgan::bias_act {
namespace {

void check(const at::Tensor& x, const at::Tensor& bias) {
  TORCH_CHECK(same_layout(x, x), "bias_act: x must be dense, got strides ", x.strides());
  TORCH_CHECK((x.dim() == 2 || x.dim() == 4) && bias.dim() == 1 && bias.size(0) == x.size(1),
              "bias_act: bias must be of shape (C,), got ", bias.sizes());
}

int64_t plane_of(const at::Tensor& x) { return x.dim() == 4 ? x.size(2) * x.size(3) : 1; }

// Whether channels are the innermost dimension in memory; x is dense.
bool innermost(const at::Tensor& x) { return x.dim() == 2 || !x.is_contiguous(); }

at::Tensor widened(const at::Tensor& bias) {
  return (bias.scalar_type() == at::kFloat ? bias : bias.to(at::kFloat)).contiguous();
}

at::Tensor bias_act_cpu(const at::Tensor& x, const at::Tensor& bias, bool silu) {
  check(x, bias);
  at::Tensor wide = widened(bias), out = allocate_like(x);
  cpu::bias_act({x.const_data_ptr(), wide.const_data_ptr<float>(), out.mutable_data_ptr(),
                 x.size(0), x.size(1), plane_of(x), innermost(x), silu, dtype_of(x)});
  return out;
}

std::tuple<at::Tensor, at::Tensor> bias_act_backward_cpu(const at::Tensor& grad,
                                                         const at::Tensor& x,
                                                         const at::Tensor& bias, bool silu) {
  check(x, bias);
  TORCH_CHECK(alike(x, grad), "bias_act_backward: grad must match x's shape, dtype and layout");
  at::Tensor wide = widened(bias), grad_x = allocate_like(x);
  at::Tensor grad_bias = allocate({x.size(1)}, wide.options());
  int64_t chunks = bias_act_chunks(x.size(0), plane_of(x), innermost(x));
  at::Tensor partial = allocate({chunks * x.size(1)}, wide.options());
  cpu::bias_act_backward({grad.const_data_ptr(), x.const_data_ptr(), wide.const_data_ptr<float>(),
                          grad_x.mutable_data_ptr(), grad_bias.mutable_data_ptr<float>(),
                          partial.mutable_data_ptr<float>(), x.size(0), x.size(1), plane_of(x),
                          innermost(x), silu, dtype_of(x)});
  return {grad_x, grad_bias};
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("bias_act(Tensor x, Tensor bias, bool silu) -> Tensor");
  m.def("bias_act_backward(Tensor grad, Tensor x, Tensor bias, bool silu) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("bias_act", bias_act_cpu);
  m.impl("bias_act_backward", bias_act_backward_cpu);
}

}  // namespace
}  // namespace lddgan::bias_act
