// What the bindings share. Each op's binding checks, allocates and calls its launcher.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#ifdef LDDGAN_EMULATE_CUDA
#include "register.h"  // tests/cuda_emulation: the CUDA kernels on CPU tensors
#endif
#if defined(LDDGAN_CUDA) && !defined(LDDGAN_EMULATE_CUDA)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include "lddgan/dtype.h"

#ifndef LDDGAN_NAMESPACE
#define LDDGAN_NAMESPACE "lddgan"  // of the operators, for looking one up
#endif

namespace lddgan {

inline Dtype dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kHalf:
      return Dtype::kFloat16;
    default:
      TORCH_CHECK(false, "lddgan: dtype must be float32, bfloat16 or float16, got ",
                  x.scalar_type());
  }
}

// Whether both are contiguous or both channels_last, so that one flat loop serves them.
inline bool same_layout(const at::Tensor& x, const at::Tensor& y) {
  return (x.is_contiguous() && y.is_contiguous()) ||
         (x.is_contiguous(at::MemoryFormat::ChannelsLast) &&
          y.is_contiguous(at::MemoryFormat::ChannelsLast));
}

// Whether a kernel that walks x may walk y beside it, and x itself is dense.
inline bool alike(const at::Tensor& x, const at::Tensor& y) {
  return x.sizes() == y.sizes() && same_layout(x, y) && x.scalar_type() == y.scalar_type() &&
         x.device() == y.device();
}

// x itself where it is contiguous or channels_last; a contiguous copy of any other view.
inline at::Tensor dense(const at::Tensor& x) { return same_layout(x, x) ? x : x.contiguous(); }

// at::empty, on the CPU without its way through the dispatcher, which costs as much as a small map.
inline at::Tensor allocate(at::IntArrayRef size, const at::TensorOptions& options,
                           at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  if (!options.device().is_cpu()) return at::empty(size, options, format);
  return at::detail::empty_cpu(size, at::typeMetaToScalarType(options.dtype()), false, format);
}

// at::empty_like for a dense x: its strides too, also where they fit both layouts.
inline at::Tensor allocate_like(const at::Tensor& x) {
  if (!x.is_cpu()) return at::empty_like(x);
  return at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type());
}

// Whether autograd must see an op of these inputs.
template <typename... Tensors>
bool wants_gradient(const Tensors&... x) {
  return at::GradMode::is_enabled() && (... || x.requires_grad());
}

// The operator of this name, to be called through the dispatcher; F is its function's type.
template <typename F>
c10::TypedOperatorHandle<F> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

#ifdef LDDGAN_CUDA
// Calls run(stream), which returns a cudaError_t, on x's device and current stream.
template <typename Run>
void launch(const Run& run, const at::Tensor& x) {
#ifdef LDDGAN_EMULATE_CUDA
  int error = run(nullptr);
  TORCH_CHECK(error == 0, "CUDA emulation: error ", error, " for ", x.sizes(), ": ",
              emulation_error());
#else
  c10::cuda::CUDAGuard guard(x.device());
  C10_CUDA_CHECK(cudaError_t(run(c10::cuda::getCurrentCUDAStream().stream())));
#endif
}

// The same for a launcher that takes its arguments' struct alone.
template <typename Args>
void launch(int (*launcher)(const Args&, void*), const Args& args, const at::Tensor& x) {
  launch([&](void* stream) { return launcher(args, stream); }, x);
}
#endif

}  // namespace lddgan
