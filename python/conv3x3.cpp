#include "cpu/conv3x3.h"

#include "torch_common.h"

namespace lddgan::conv3x3 {
namespace {

// All float32; x and residual channels_last (ops/conv3x3.py sees to it).
at::Tensor conv3x3_cpu(const at::Tensor& x, const at::Tensor& packed,
                       const std::optional<at::Tensor>& bias,
                       const std::optional<at::Tensor>& residual) {
  TORCH_CHECK(packed.dim() == 4 && packed.size(1) == 16 && packed.size(3) == kConvPanel &&
                  packed.is_contiguous() && packed.size(2) % kConvLane == 0,
              "conv3x3: packed must come from pack_conv3x3");
  Conv3x3Args args{};
  args.n = x.size(0);
  args.h = x.size(2);
  args.w = x.size(3);
  args.c_in = packed.size(2);
  args.c_out = packed.size(0) * kConvPanel;
  TORCH_CHECK(x.size(1) == args.c_in && x.is_contiguous(at::MemoryFormat::ChannelsLast),
              "conv3x3: x must be channels_last with ", args.c_in, " channels");
  at::Tensor out =
      allocate({args.n, args.c_out, args.h, args.w}, x.options(), at::MemoryFormat::ChannelsLast);
  args.x = x.const_data_ptr<float>();
  args.weight = packed.const_data_ptr<float>();
  if (bias) {
    TORCH_CHECK(bias->numel() == args.c_out && bias->is_contiguous(),
                "conv3x3: bias must be of shape (", args.c_out, ",)");
    args.bias = bias->const_data_ptr<float>();
  }
  if (residual) {
    TORCH_CHECK(
        residual->sizes() == out.sizes() && residual->is_contiguous(at::MemoryFormat::ChannelsLast),
        "conv3x3: residual must be channels_last of shape ", out.sizes());
    args.residual = residual->const_data_ptr<float>();
  }
  args.out = out.mutable_data_ptr<float>();
  if (out.numel() > 0) cpu::conv3x3(args);
  return out;
}

// Float32 (D, C, 3, 3) of any strides; `transposed`: of the convolution that passes gradients back.
at::Tensor pack_conv3x3_cpu(const at::Tensor& weight, bool transposed) {
  const int out = transposed ? 1 : 0, in = 1 - out;
  PackConv3x3Args args{};
  args.c_out = weight.size(out);
  args.c_in = weight.size(in);
  TORCH_CHECK(args.c_out % kConvPanel == 0, "pack_conv3x3: weight must have a multiple of ",
              kConvPanel, " output channels, got ", args.c_out);
  args.stride_d = weight.stride(out);
  args.stride_c = weight.stride(in);
  args.stride_i = weight.stride(2);
  args.stride_j = weight.stride(3);
  args.weight = weight.const_data_ptr<float>();
  if (transposed) {  // turned by half a turn: from the last tap backwards
    args.weight += 2 * args.stride_i + 2 * args.stride_j;
    args.stride_i = -args.stride_i;
    args.stride_j = -args.stride_j;
  }
  at::Tensor packed =
      allocate({args.c_out / kConvPanel, 16, args.c_in, kConvPanel}, weight.options());
  args.packed = packed.mutable_data_ptr<float>();
  cpu::pack_conv3x3(args);
  return packed;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("pack_conv3x3(Tensor weight, bool transposed) -> Tensor");
  m.def("conv3x3(Tensor x, Tensor packed, Tensor? bias, Tensor? residual) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("conv3x3", conv3x3_cpu);
  m.impl("pack_conv3x3", pack_conv3x3_cpu);
}

}  // namespace
}  // namespace lddgan::conv3x3
