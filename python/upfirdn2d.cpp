#include "lddgan/upfirdn2d.h"

#include "node.h"

namespace lddgan::upfirdn2d {
namespace {

// x is dense, taps float32 and contiguous, pad (left, right, top, bottom).
Upfirdn2dArgs prepare(const at::Tensor& x, const at::Tensor& taps, int64_t up, int64_t down,
                      at::IntArrayRef pad, bool reversed, at::Tensor& out) {
  TORCH_CHECK(x.dim() == 4, "upfirdn2d: x must be 4-D, got ", x.dim(), "-D");
  TORCH_CHECK((taps.dim() == 1 || taps.dim() == 2) && taps.numel() > 0 &&
                  taps.scalar_type() == at::kFloat && taps.is_contiguous() &&
                  taps.device() == x.device(),
              "upfirdn2d: taps must be contiguous float32 of shape (K,) or (Kh, Kw) like x");
  TORCH_CHECK(up >= 1 && down >= 1 && pad.size() == 4,
              "upfirdn2d: up and down must be at least 1, pad 4 ints");
  int64_t taps_h = taps.size(0), taps_w = taps.size(-1);
  int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  int64_t room_h = h * up + pad[2] + pad[3] - taps_h, room_w = w * up + pad[0] + pad[1] - taps_w;
  TORCH_CHECK(room_h >= 0 && room_w >= 0, "upfirdn2d: x must be large enough for the taps, got ",
              x.sizes());
  bool channels_last = !x.is_contiguous();
  auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  TORCH_CHECK(x.is_contiguous(format), "upfirdn2d: x must be contiguous or channels_last");
  out = allocate({n, c, room_h / down + 1, room_w / down + 1}, x.options(), format);
  return {x.const_data_ptr(),
          taps.const_data_ptr<float>(),
          out.mutable_data_ptr(),
          n,
          c,
          h,
          w,
          out.size(2),
          out.size(3),
          up,
          down,
          taps_h,
          taps_w,
          pad[0],
          pad[2],
          taps.dim() == 1,
          reversed,
          channels_last,
          dtype_of(x)};
}

at::Tensor upfirdn2d_cpu(const at::Tensor& x, const at::Tensor& taps, int64_t up, int64_t down,
                         at::IntArrayRef pad, bool reversed) {
  at::Tensor out;
  cpu::upfirdn2d(prepare(x, taps, up, down, pad, reversed, out));
  return out;
}

// The gradient is attached here and not in Python: a Python autograd.Function costs more than the
// kernel on small maps. Sizes and pads are symbolic under torch.compile.
at::Tensor call(const at::Tensor& x, const at::Tensor& taps, int64_t up, int64_t down,
                c10::SymIntArrayRef pad, bool reversed) {
  static auto op = find_op<decltype(call)>(LDDGAN_NAMESPACE "::upfirdn2d");
  return op.call(x, taps, up, down, pad, reversed);
}

struct UpfirdnNode : Node {
  SavedVariable taps;
  c10::SymInt height, width, left, top;
  int64_t up, down;
  bool reversed;

  std::string name() const override { return "UpfirdnBackward"; }
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    taps.reset_data();
  }
  // The adjoint: up and down swapped, the taps the other way round, and the pads that make its
  // result as large as x. By way of autograd, so that it has a gradient itself.
  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(1);
    if (!grads[0].defined()) return out;
    const at::Tensor taps_ = taps.unpack(), grad = dense(grads[0]);
    if (height == 0 || width == 0) {  // no taps fit the adjoint of padding nothing
      out[0] = grad.new_zeros_symint({grad.sym_size(0), grad.sym_size(1), height, width});
      return out;
    }
    c10::SymInt pad[] = {
        taps_.size(-1) - 1 - left, width * up - grad.sym_size(3) * down + left - up + 1,
        taps_.size(0) - 1 - top, height * up - grad.sym_size(2) * down + top - up + 1};
    out[0] = call(grad, taps_, down, up, pad, !reversed);
    return out;
  }
};

at::Tensor with_gradient(const at::Tensor& x, const at::Tensor& taps, int64_t up, int64_t down,
                         c10::SymIntArrayRef pad, bool reversed) {
  auto node = node_for<UpfirdnNode>(x);
  at::Tensor out = below_autograd([&] { return call(x, taps, up, down, pad, reversed); });
  if (node) {
    node->taps = SavedVariable(taps, false);
    node->height = x.sym_size(2);
    node->width = x.sym_size(3);
    node->left = pad[0];
    node->top = pad[2];
    node->up = up;
    node->down = down;
    node->reversed = reversed;
    set_history(out, node);
  }
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "upfirdn2d(Tensor x, Tensor taps, int up, int down, SymInt[] pad, bool reversed) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, Autograd, m) { m.impl("upfirdn2d", with_gradient); }
TORCH_LIBRARY_IMPL(lddgan, CPU, m) { m.impl("upfirdn2d", upfirdn2d_cpu); }

#ifdef LDDGAN_CUDA
at::Tensor upfirdn2d_on_cuda(const at::Tensor& x, const at::Tensor& taps, int64_t up, int64_t down,
                             at::IntArrayRef pad, bool reversed) {
  at::Tensor out;
  launch(upfirdn2d_cuda, prepare(x, taps, up, down, pad, reversed, out), x);
  return out;
}
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) { m.impl("upfirdn2d", upfirdn2d_on_cuda); }
#endif

}  // namespace
}  // namespace lddgan::upfirdn2d
