#include "cpu/packed_conv2d.h"

#include "conv_common.h"

namespace lddgan {
namespace {

// All float32; x and residual channels_last (ops/packed_conv2d.py sees to it). `packed` is
// [D / kConvPanel, K * K * C, kConvPanel].
at::Tensor packed_conv2d_cpu(const at::Tensor& x, const at::Tensor& packed, int64_t kernel,
                             const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& residual) {
  TORCH_CHECK(x.dim() == 4 && kernel % 2 == 1 && kernel > 0 && packed.dim() == 3 &&
                  packed.size(1) == kernel * kernel * x.size(1) && packed.size(2) == kConvPanel &&
                  packed.is_contiguous(),
              "packed_conv2d: packed must come from pack_conv2d, for x of ", x.sizes());
  PackedConv2dArgs args{};
  args.kernel = kernel;
  at::Tensor out = prepare_packed("packed_conv2d", x, packed, x.size(1), bias, residual, args);
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
