#include "cpu/minibatch_stddev.h"

#include "torch_common.h"

namespace lddgan::minibatch_stddev {
namespace {

at::MemoryFormat layout_of(const at::Tensor& x) {
  return x.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
}

// x is dense; `members` divides its batch (ops/minibatch_stddev.py sees to it).
MinibatchStddevArgs prepare(const at::Tensor& x, int64_t members) {
  TORCH_CHECK(x.dim() == 4 && members > 0 && x.size(0) % members == 0,
              "minibatch_stddev: members must divide the batch, got ", members);
  TORCH_CHECK(same_layout(x, x), "minibatch_stddev: x must be dense, got strides ", x.strides());
  bool channels_last = !x.is_contiguous();
  return {x.const_data_ptr(),
          nullptr,
          nullptr,
          nullptr,
          members,
          x.size(0) / members,
          x.size(1),
          x.size(2) * x.size(3),
          channels_last,
          dtype_of(x)};
}

at::Tensor minibatch_stddev_cpu(const at::Tensor& x, int64_t members) {
  MinibatchStddevArgs args = prepare(x, members);
  at::Tensor out =
      allocate({x.size(0), x.size(1) + 1, x.size(2), x.size(3)}, x.options(), layout_of(x));
  if (x.numel() == 0) return out;
  int64_t rows = minibatch_stddev_rows(args.channels, args.plane, args.channels_last);
  at::Tensor partial = allocate({args.sets * rows}, x.options().dtype(at::kDouble));
  args.out = out.mutable_data_ptr();
  args.partial = partial.mutable_data_ptr<double>();
  cpu::minibatch_stddev(args);
  return out;
}

at::Tensor minibatch_stddev_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                         int64_t members) {
  MinibatchStddevArgs args = prepare(x, members);
  TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) + 1 &&
                  grad.size(2) == x.size(2) && grad.size(3) == x.size(3) &&
                  grad.is_contiguous(layout_of(x)) && grad.scalar_type() == x.scalar_type(),
              "minibatch_stddev_backward: grad must be x with one channel more, of its dtype and "
              "layout");
  at::Tensor out = allocate_like(x);
  if (x.numel() == 0) return out;
  at::Tensor partial = allocate({args.sets}, x.options().dtype(at::kDouble));
  args.grad = grad.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.partial = partial.mutable_data_ptr<double>();
  cpu::minibatch_stddev_backward(args);
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("minibatch_stddev(Tensor x, int members) -> Tensor");
  m.def("minibatch_stddev_backward(Tensor grad, Tensor x, int members) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("minibatch_stddev", minibatch_stddev_cpu);
  m.impl("minibatch_stddev_backward", minibatch_stddev_backward_cpu);
}

}  // namespace
}  // namespace lddgan::minibatch_stddev
