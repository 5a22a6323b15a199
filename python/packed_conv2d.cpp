#include "cpu/packed_conv2d.h"

#if defined(__linux__)
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#endif

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

// A copy of weights that are read again and again in one stream, from memory: in pages of 2 MB, as
// far as they fill such and where Linux gives them, so that no translation is waited for.
at::Tensor in_large_pages_cpu(const at::Tensor& x) {
#if defined(MADV_HUGEPAGE)
  constexpr size_t kPage = size_t(2) << 20;
  const size_t bytes = x.nbytes(), room = bytes + kPage;
  void* base = bytes < kPage ? MAP_FAILED
                             : mmap(nullptr, room, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base != MAP_FAILED) {
    void* data = reinterpret_cast<void*>((uintptr_t(base) + kPage - 1) / kPage * kPage);
    madvise(data, bytes / kPage * kPage, MADV_HUGEPAGE);
    c10::profiledCPUMemoryReporter().New(data, bytes);
    const auto release = [base, room](void* data) {
      c10::profiledCPUMemoryReporter().Delete(data);
      munmap(base, room);
    };
    return at::from_blob(data, x.sizes(), release, x.options()).copy_(x);
  }
#endif
  return x.clone(at::MemoryFormat::Contiguous);
}

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def(
      "packed_conv2d(Tensor x, Tensor packed, int kernel, Tensor? bias, Tensor? residual) -> "
      "Tensor");
  m.def("in_large_pages(Tensor x) -> Tensor");
}
TORCH_LIBRARY_IMPL(lddgan, CPU, m) {
  m.impl("packed_conv2d", packed_conv2d_cpu);
  m.impl("in_large_pages", in_large_pages_cpu);
}

}  // namespace
}  // namespace lddgan
