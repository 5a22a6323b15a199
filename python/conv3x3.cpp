#include "conv_common.h"

namespace lddgan::conv3x3 {
namespace {

// All float32; x and residual channels_last (ops/conv3x3.py sees to it).
at::Tensor conv3x3_cpu(const at::Tensor& x, const at::Tensor& packed,
                       const std::optional<at::Tensor>& bias,
                       const std::optional<at::Tensor>& residual) {
  TORCH_CHECK(packed.dim() == 4 && packed.size(1) == 16 && packed.size(3) == kConvPanel &&
                  packed.is_contiguous(),
              "conv3x3: packed must come from pack_conv3x3, got ", packed.sizes());
  Conv3x3Args args{};
  at::Tensor out = prepare_packed("conv3x3", x, packed, packed.size(2), bias, residual, args);
  if (out.numel() > 0) cpu::conv3x3(args);
  return out;
}

// Float32 (D, C, 3, 3) of any strides; `transposed`: of the convolution that passes gradients back.
at::Tensor pack_conv3x3_cpu(const at::Tensor& weight, bool transposed) {
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
              "pack_conv3x3: weight must be of shape (D, C, 3, 3), got ", weight.sizes());
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

// All float32; grad and x channels_last. (D, C, 3, 3), channels_last or contiguous.
at::Tensor conv3x3_weight_grad_cpu(const at::Tensor& grad, const at::Tensor& x,
                                   bool channels_last) {
  Conv3x3WeightGradArgs args{};
  args.n = x.size(0);
  args.c_in = x.size(1);
  args.c_out = grad.size(1);
  args.h = x.size(2);
  args.w = x.size(3);
  TORCH_CHECK(x.is_contiguous(at::MemoryFormat::ChannelsLast), "conv3x3: x must be channels_last");
  TORCH_CHECK(grad.is_contiguous(at::MemoryFormat::ChannelsLast) && grad.size(0) == args.n &&
                  grad.sizes().slice(2) == x.sizes().slice(2),
              "conv3x3: grad must be channels_last of shape (", args.n, ", D, ", args.h, ", ",
              args.w, ")");
  at::Tensor out =
      allocate({args.c_out, args.c_in, 3, 3}, x.options(),
               channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  if (x.numel() == 0) return out.zero_();
  args.stride_d = out.stride(0);
  args.stride_c = out.stride(1);
  args.stride_i = out.stride(2);
  args.stride_j = out.stride(3);
  args.x = x.const_data_ptr<float>();
  args.grad = grad.const_data_ptr<float>();
  args.grad_weight = out.mutable_data_ptr<float>();
  cpu::conv3x3_weight_grad(args);
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("pack_conv3x3(Tensor weight, bool transposed) -> Tensor");
  m.def("conv3x3(Tensor x, Tensor packed, Tensor? bias, Tensor? residual) -> Tensor");
  m.def("conv3x3_weight_grad(Tensor grad, Tensor x, bool channels_last) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("conv3x3", conv3x3_cpu);
  m.impl("pack_conv3x3", pack_conv3x3_cpu);
  m.impl("conv3x3_weight_grad", conv3x3_weight_grad_cpu);
}

}  // namespace
}  // namespace lddgan::conv3x3
