#include "lddgan/upfirdn2d.h"

#include "torch_common.h"

namespace lddgan {
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
  out = at::empty({n, c, room_h / down + 1, room_w / down + 1}, x.options(), format);
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

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "upfirdn2d(Tensor x, Tensor taps, int up, int down, SymInt[] pad, bool reversed) -> Tensor");
}
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
}  // namespace lddgan
