// What the bindings of the packed convolutions share.
#pragma once

#include "cpu/conv3x3.h"
#include "torch_common.h"

namespace lddgan {

// Fills in all that the convolutions' arguments have in common, and allocates what they write. All
// tensors are float32; `packed` holds c_out / kConvPanel panels for c_in channels.
template <typename Args>
at::Tensor prepare_packed(const char* op, const at::Tensor& x, const at::Tensor& packed,
                          int64_t c_in, const std::optional<at::Tensor>& bias,
                          const std::optional<at::Tensor>& residual, Args& args) {
  TORCH_CHECK(x.dim() == 4 && x.size(1) == c_in && c_in % kConvLane == 0 &&
                  x.is_contiguous(at::MemoryFormat::ChannelsLast),
              op, ": x must be channels_last with ", c_in, " channels, a multiple of ", kConvLane,
              ", got ", x.sizes());
  args.n = x.size(0);
  args.c_in = c_in;
  args.h = x.size(2);
  args.w = x.size(3);
  args.c_out = packed.size(0) * kConvPanel;
  at::Tensor out =
      allocate({args.n, args.c_out, args.h, args.w}, x.options(), at::MemoryFormat::ChannelsLast);
  args.x = x.const_data_ptr<float>();
  args.weight = packed.const_data_ptr<float>();
  if (bias) {
    TORCH_CHECK(bias->numel() == args.c_out && bias->is_contiguous(), op,
                ": bias must be of shape (", args.c_out, ",), got ", bias->sizes());
    args.bias = bias->const_data_ptr<float>();
  }
  if (residual) {
    TORCH_CHECK(alike(out, *residual), op, ": residual must be channels_last of shape ",
                out.sizes(), ", got ", residual->sizes());
    args.residual = residual->const_data_ptr<float>();
  }
  args.out = out.mutable_data_ptr<float>();
  return out;
}

}  // namespace lddgan
