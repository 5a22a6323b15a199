#include "lddgan/seeded_normal.h"

#include "torch_common.h"

namespace lddgan::seeded_normal {
namespace {

// seeds: (N,) int64; shape: (N, ...) of the result (ops/seeded_normal.py sees to it).
SeededNormalArgs prepare(at::IntArrayRef shape, const at::Tensor& seeds, int64_t stream,
                         int64_t step, at::ScalarType dtype, bool channels_last, at::Tensor& out) {
  TORCH_CHECK(!shape.empty() && shape[0] == seeds.numel(),
              "seeded_normal: shape must begin with the number of seeds, got ", shape);
  auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  out = allocate(shape, seeds.options().dtype(dtype), format);
  int64_t size = 1;
  for (int64_t length : shape.slice(1)) size *= length;
  Batch batch = {seeds.numel(), 1, size, false};
  if (channels_last && !out.is_contiguous()) {
    batch = {seeds.numel(), shape[1], shape[2] * shape[3], true};
  }
  return {seeds.const_data_ptr<int64_t>(),
          out.mutable_data_ptr(),
          batch,
          uint32_t(stream),
          uint32_t(step),
          dtype_of(out)};
}

at::Tensor seeded_normal_cpu(at::IntArrayRef shape, const at::Tensor& seeds, int64_t stream,
                             int64_t step, at::ScalarType dtype, bool channels_last) {
  at::Tensor out;
  at::Tensor dense_seeds = seeds.contiguous();
  cpu::seeded_normal(prepare(shape, dense_seeds, stream, step, dtype, channels_last, out));
  return out;
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "seeded_normal(SymInt[] shape, Tensor seeds, int stream, int step, ScalarType dtype, "
      "bool channels_last) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, Autograd, m) {  // of integers
  m.impl("seeded_normal", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) { m.impl("seeded_normal", seeded_normal_cpu); }

#ifdef LDDGAN_CUDA
at::Tensor seeded_normal_on_cuda(at::IntArrayRef shape, const at::Tensor& seeds, int64_t stream,
                                 int64_t step, at::ScalarType dtype, bool channels_last) {
  at::Tensor out;
  at::Tensor dense_seeds = seeds.contiguous();
  launch(seeded_normal_cuda, prepare(shape, dense_seeds, stream, step, dtype, channels_last, out),
         dense_seeds);
  return out;
}
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) { m.impl("seeded_normal", seeded_normal_on_cuda); }
#endif

}  // namespace
}  // namespace lddgan::seeded_normal
