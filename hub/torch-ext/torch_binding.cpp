// All bindings in one translation unit, as operators of a namespace that no other build has.
#include <torch/library.h>

#include "registration.h"

#undef TORCH_LIBRARY_FRAGMENT
#define TORCH_LIBRARY_FRAGMENT(ns, m) _TORCH_LIBRARY_FRAGMENT(TORCH_EXTENSION_NAME, m, C10_UID)
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) _TORCH_LIBRARY_IMPL(TORCH_EXTENSION_NAME, key, m, C10_UID)
#define LDDGAN_NAMESPACE STRINGIFY(TORCH_EXTENSION_NAME)
#define LDDGAN_X86
#if defined(CUDA_KERNEL)
#define LDDGAN_CUDA
#endif

#include "python/all.h"  // every binding, listed by tools/hub_kernel.py

TORCH_LIBRARY_FRAGMENT(lddgan, m) {
  m.def("cpu_isa() -> str", [] { return std::string(lddgan::cpu_isa_name()); });
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
