#include "lddgan/diffuse_pair.h"

#include "diffusion_common.h"

namespace lddgan::diffuse_pair {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// x0 and the noises share dtype, device, shape and dense strides; t and seeds are contiguous int64
// (ops/diffuse_pair.py sees to it).
DiffusePairArgs prepare(const at::Tensor& x0, const at::Tensor& t, const at::Tensor& a_s,
                        const at::Tensor& sigmas, const at::Tensor& a_s_cum,
                        const at::Tensor& sigmas_cum, const OptionalTensor& seeds,
                        const OptionalTensor& noise_t, const OptionalTensor& noise_next,
                        int64_t stream_t, int64_t stream_next, int64_t step, at::Tensor& x_t,
                        at::Tensor& x_next) {
  const char* op = "diffuse_pair";
  check_image(op, x0);
  check_alike(op, "noise_t", noise_t, x0);
  check_alike(op, "noise_next", noise_next, x0);
  check_row(op, "t", t, x0.size(0), x0);
  check_row(op, "seeds", seeds, x0.size(0), x0);
  check_row(op, "a_s", a_s, a_s.numel(), x0);
  check_row(op, "sigmas", sigmas, a_s.numel(), x0);
  check_row(op, "a_s_cum", a_s_cum, a_s.numel(), x0);
  check_row(op, "sigmas_cum", sigmas_cum, a_s.numel(), x0);
  TORCH_CHECK_VALUE(
      noise_t.has_value() == noise_next.has_value() && seeds.has_value() != noise_t.has_value(),
      "diffuse_pair: give seeds or both noises");
  x_t = allocate_like(x0);
  x_next = allocate_like(x0);
  return {x0.const_data_ptr(),
          t.const_data_ptr<int64_t>(),
          a_s.const_data_ptr<float>(),
          sigmas.const_data_ptr<float>(),
          a_s_cum.const_data_ptr<float>(),
          sigmas_cum.const_data_ptr<float>(),
          data_or_null<int64_t>(seeds),
          data_or_null<void>(noise_t),
          data_or_null<void>(noise_next),
          x_t.mutable_data_ptr(),
          x_next.mutable_data_ptr(),
          batch_of(x0),
          a_s.numel() - 1,
          uint32_t(stream_t),
          uint32_t(stream_next),
          uint32_t(step),
          dtype_of(x0)};
}

std::tuple<at::Tensor, at::Tensor> diffuse_pair_cpu(
    const at::Tensor& x0, const at::Tensor& t, const at::Tensor& a_s, const at::Tensor& sigmas,
    const at::Tensor& a_s_cum, const at::Tensor& sigmas_cum, const OptionalTensor& seeds,
    const OptionalTensor& noise_t, const OptionalTensor& noise_next, int64_t stream_t,
    int64_t stream_next, int64_t step) {
  at::Tensor x_t, x_next;
  DiffusePairArgs args = prepare(x0, t, a_s, sigmas, a_s_cum, sigmas_cum, seeds, noise_t,
                                 noise_next, stream_t, stream_next, step, x_t, x_next);
  check_t("diffuse_pair", t, a_s.numel() - 1);
  cpu::diffuse_pair(args);
  return {x_t, x_next};
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "diffuse_pair(Tensor x0, Tensor t, Tensor a_s, Tensor sigmas, Tensor a_s_cum, "
      "Tensor sigmas_cum, Tensor? seeds, Tensor? noise_t, Tensor? noise_next, int stream_t, "
      "int stream_next, int step) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(lddgan, Autograd, m) {  // the inputs are data
  m.impl("diffuse_pair", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) { m.impl("diffuse_pair", diffuse_pair_cpu); }

#ifdef LDDGAN_CUDA
std::tuple<at::Tensor, at::Tensor> diffuse_pair_on_cuda(
    const at::Tensor& x0, const at::Tensor& t, const at::Tensor& a_s, const at::Tensor& sigmas,
    const at::Tensor& a_s_cum, const at::Tensor& sigmas_cum, const OptionalTensor& seeds,
    const OptionalTensor& noise_t, const OptionalTensor& noise_next, int64_t stream_t,
    int64_t stream_next, int64_t step) {
  at::Tensor x_t, x_next;
  launch(diffuse_pair_cuda,
         prepare(x0, t, a_s, sigmas, a_s_cum, sigmas_cum, seeds, noise_t, noise_next, stream_t,
                 stream_next, step, x_t, x_next),
         x0);
  return {x_t, x_next};
}
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) { m.impl("diffuse_pair", diffuse_pair_on_cuda); }
#endif

}  // namespace
}  // namespace lddgan::diffuse_pair
