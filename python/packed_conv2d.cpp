#include "cpu/packed_conv2d.h"

#include "torch_common.h"

namespace lddgan {
namespace {

// All float32; x and residual channels_last (ops/packed_conv2d.py sees to it). `packed` is
// [D / kConvPanel, K * K * C, kConvPanel].
at::Tensor packed_conv2d_cpu(const at::Tensor& x, const at::Tensor& packed, int64_t kernel,
                             const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& residual) {
  PackedConv2dArgs args{};
  args.n = x.size(0);
  args.c_in = x.size(1);
  args.h = x.size(2);
  args.w = x.size(3);
  args.kernel = kernel;
  TORCH_CHECK(packed.dim() == 3 && packed.size(1) == kernel * kernel * args.c_in &&
                  packed.size(2) == kConvPanel && packed.is_contiguous(),
              "packed_conv2d: packed must come from pack_conv2d, for ", args.c_in, " channels");
  TORCH_CHECK(args.c_in % kConvLane == 0 && x.is_contiguous(at::MemoryFormat::ChannelsLast),
              "packed_conv2d: x must be channels_last, its channels a multiple of ", kConvLane);
  args.c_out = packed.size(0) * kConvPanel;
  at::Tensor out =
      allocate({args.n, args.c_out, args.h, args.w}, x.options(), at::MemoryFormat::ChannelsLast);
  args.x = x.const_data_ptr<float>();
  args.weight = packed.const_data_ptr<float>();
  if (bias) {
    TORCH_CHECK(bias->numel() == args.c_out && bias->is_contiguous(),
                "packed_conv2d: bias must be of shape (", args.c_out, ",)");
    args.bias = bias->const_data_ptr<float>();
  }
  if (residual) {
    TORCH_CHECK(
        residual->sizes() == out.sizes() && residual->is_contiguous(at::MemoryFormat::ChannelsLast),
        "packed_conv2d: residual must be channels_last of shape ", out.sizes());
    args.residual = residual->const_data_ptr<float>();
  }
  args.out = out.mutable_data_ptr<float>();
  if (out.numel() > 0) cpu::packed_conv2d(args);
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "packed_conv2d(Tensor x, Tensor packed, int kernel, Tensor? bias, Tensor? residual) -> "
      "Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) { m.impl("packed_conv2d", packed_conv2d_cpu); }

}  // namespace
}  // namespace lddgan
