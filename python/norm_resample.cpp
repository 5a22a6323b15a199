#include "lddgan/norm_resample.h"

#include "norm_common.h"

namespace lddgan::norm_resample {
namespace {

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Images are channels_last (ops/norm_resample.py sees to it); the shortcut is x without `skip`.
template <typename Run>
Results resample(const NormCall& n, const Optional& skip, bool up, const Run& run) {
  NormArgs args = norm_args(n);
  NormResampleArgs a{};
  a.norm = args.kernel;
  const at::Tensor &x = n.x, &source = skip ? *skip : x;
  TORCH_CHECK(a.norm.channels_last, "norm_resample: x must be channels_last");
  TORCH_CHECK(source.is_contiguous(at::MemoryFormat::ChannelsLast) &&
                  source.scalar_type() == x.scalar_type() && source.size(0) == x.size(0) &&
                  source.size(2) == x.size(2) && source.size(3) == x.size(3),
              "norm_resample: skip must match x's layout, dtype and size, got ", source.sizes());
  a.skip = source.const_data_ptr();
  a.skip_channels = source.size(1);
  a.height = x.size(2);
  a.width = x.size(3);
  a.up = up;
  auto make = [&](int64_t channels) {
    return allocate({a.norm.samples, channels, resampled(a, a.height), resampled(a, a.width)},
                    x.options(), at::MemoryFormat::ChannelsLast);
  };
  at::Tensor h = make(x.size(1)), skip_out = make(a.skip_channels);
  at::Tensor statistics =
      allocate({2, a.norm.samples, a.norm.groups}, x.options().dtype(at::kFloat));
  a.norm.out = h.mutable_data_ptr();
  a.skip_out = skip_out.mutable_data_ptr();
  attach_statistics(a.norm, statistics.mutable_data_ptr<float>());
  if (h.numel() != 0) run(a);
  return {h, skip_out, statistics};
}

Results norm_resample_cpu(const at::Tensor& x, const Optional& skip, const at::Tensor& scale,
                          const at::Tensor& shift, int64_t num_groups, double eps, bool silu,
                          bool up, const Optional& moments) {
  TORCH_CHECK(!up, "norm_resample: going up has no kernel of its own on the CPU");
  return resample({x, kNone, kNone, scale, shift, num_groups, eps, silu, {}, moments}, skip, up,
                  cpu::norm_resample);
}

#ifdef LDDGAN_CUDA
// Partial moments (N, num_groups, parts, 2) of a channels_last x; plan is (groups, parts), from
// ops/_norm_plan.py.
at::Tensor group_moments_on_cuda(const at::Tensor& x, int64_t num_groups, at::IntArrayRef plan) {
  TORCH_CHECK(x.dim() == 4 && same_layout(x, x) && num_groups > 0 && x.size(1) % num_groups == 0 &&
                  plan.size() == 2 && plan[0] > 0 && num_groups % plan[0] == 0 && plan[1] > 0,
              "group_moments: x and plan do not fit ", num_groups, " groups");
  at::Tensor out = allocate({x.size(0), num_groups, plan[1], 2}, x.options().dtype(at::kFloat));
  AdaGroupNormArgs a{};
  a.x = x.const_data_ptr();
  a.samples = x.size(0);
  a.channels1 = x.size(1);
  a.pixels = x.size(2) * x.size(3);
  a.groups = num_groups;
  a.dtype = dtype_of(x);
  a.channels_last = !x.is_contiguous();
  AdaGroupNormPlan p{false, int(plan[0]), int(plan[1]), out.mutable_data_ptr<float>()};
  if (x.numel() != 0) {
    launch([&](void* stream) { return ada_group_norm_moments_cuda(a, p, stream); }, x);
  }
  return out;
}

Results norm_resample_on_cuda(const at::Tensor& x, const Optional& skip, const at::Tensor& scale,
                              const at::Tensor& shift, int64_t num_groups, double eps, bool silu,
                              bool up, const Optional& moments) {
  TORCH_CHECK(moments && moments->is_contiguous() && moments->scalar_type() == at::kFloat &&
                  moments->dim() == 4 && moments->size(0) == x.size(0) &&
                  moments->size(1) == num_groups && moments->size(3) == 2,
              "norm_resample: moments must be float32 of shape (N, num_groups, parts, 2)");
  auto run = [&](const NormResampleArgs& a) {
    const float* partial = moments->const_data_ptr<float>();
    launch(
        [&](void* stream) { return norm_resample_cuda(a, partial, int(moments->size(2)), stream); },
        x);
  };
  return resample({x, kNone, kNone, scale, shift, num_groups, eps, silu, {}, moments}, skip, up,
                  run);
}
#endif

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("group_moments(Tensor x, int num_groups, int[] plan) -> Tensor");
  // -> h, skip_out, statistics (2, N, num_groups): mean and rstd of x
  m.def(
      "norm_resample(Tensor x, Tensor? skip, Tensor scale, Tensor shift, int num_groups, "
      "float eps, bool silu, bool up, Tensor? moments=None) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) { m.impl("norm_resample", norm_resample_cpu); }
#ifdef LDDGAN_CUDA
TORCH_LIBRARY_IMPL(lddgan, CUDA, m) {
  m.impl("group_moments", group_moments_on_cuda);
  m.impl("norm_resample", norm_resample_on_cuda);
}
#endif

}  // namespace
}  // namespace lddgan::norm_resample
