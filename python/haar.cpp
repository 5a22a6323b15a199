#include "lddgan/haar.h"

#include "node.h"

namespace lddgan::haar {
namespace {

// `in` is dense; dwt (N, C, 2H, 2W) -> (N, 4C, H, W), idwt the other way.
HaarArgs prepare(const at::Tensor& in, double scale, bool inverse, at::Tensor& out) {
  TORCH_CHECK(in.dim() == 4, "haar: the input must be 4-D, got ", in.dim(), "-D");
  int64_t n = in.size(0), c = in.size(1), h = in.size(2), w = in.size(3);
  TORCH_CHECK(inverse ? c % 4 == 0 : h % 2 == 0 && w % 2 == 0, "haar: the input must have ",
              inverse ? "4C channels" : "even height and width", ", got ", in.sizes());
  bool channels_last = !in.is_contiguous();
  auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  TORCH_CHECK(in.is_contiguous(format), "haar: the input must be contiguous or channels_last");
  if (inverse) {
    c /= 4;
  } else {
    h /= 2;
    w /= 2;
  }
  out = inverse ? allocate({n, c, 2 * h, 2 * w}, in.options(), format)
                : allocate({n, 4 * c, h, w}, in.options(), format);
  return {in.const_data_ptr(), out.mutable_data_ptr(), n,           c, h, w,
          float(scale),        channels_last,          dtype_of(in)};
}

at::Tensor dwt_cpu(const at::Tensor& x, double scale) {
  at::Tensor out;
  cpu::haar_dwt2d(prepare(x, scale, false, out));
  return out;
}

at::Tensor idwt_cpu(const at::Tensor& y, double scale) {
  at::Tensor out;
  cpu::haar_idwt2d(prepare(y, scale, true, out));
  return out;
}

template <bool inverse>
at::Tensor call(const at::Tensor& x, double scale) {
  static auto op = find_op<at::Tensor(const at::Tensor&, double)>(
      inverse ? LDDGAN_NAMESPACE "::haar_idwt2d" : LDDGAN_NAMESPACE "::haar_dwt2d");
  return op.call(x, scale);
}

// The transform is orthogonal: the gradient of each is the other. Called by way of autograd, so
// that it has a gradient itself.
template <bool inverse>
struct HaarNode : Node {
  double scale;
  std::string name() const override { return inverse ? "HaarIdwtBackward" : "HaarDwtBackward"; }
  variable_list apply(variable_list&& grads) override {
    if (grads[0].defined()) grads[0] = call<!inverse>(dense(grads[0]), scale);
    return std::move(grads);
  }
};

template <bool inverse>
at::Tensor with_gradient(const at::Tensor& x, double scale) {
  auto node = node_for<HaarNode<inverse>>(x);
  at::Tensor out = below_autograd([&] { return call<inverse>(x, scale); });
  if (node) {
    node->scale = scale;
    set_history(out, node);
  }
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("haar_dwt2d(Tensor x, float scale) -> Tensor");
  m.def("haar_idwt2d(Tensor y, float scale) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, Autograd, m) {
  m.impl("haar_dwt2d", with_gradient<false>);
  m.impl("haar_idwt2d", with_gradient<true>);
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("haar_dwt2d", dwt_cpu);
  m.impl("haar_idwt2d", idwt_cpu);
}

#ifdef LDDGAN_CUDA
at::Tensor dwt_on_cuda(const at::Tensor& x, double scale) {
  at::Tensor out;
  launch(haar_dwt2d_cuda, prepare(x, scale, false, out), x);
  return out;
}

at::Tensor idwt_on_cuda(const at::Tensor& y, double scale) {
  at::Tensor out;
  launch(haar_idwt2d_cuda, prepare(y, scale, true, out), y);
  return out;
}

TORCH_LIBRARY_IMPL(lddgan, CUDA, m) {
  m.impl("haar_dwt2d", dwt_on_cuda);
  m.impl("haar_idwt2d", idwt_on_cuda);
}
#endif

}  // namespace
}  // namespace lddgan::haar
