// Registers the CUDA bindings for CPU tensors, as torch.ops.lddgan_emulated.*.
//
// The bindings of python/ are compiled unchanged: their schemas go to that namespace, their CUDA
// implementations under the CPU's dispatch key, and their CPU implementations nowhere.
#pragma once

#include <torch/library.h>

#undef TORCH_LIBRARY_FRAGMENT
#define TORCH_LIBRARY_FRAGMENT(ns, m) _TORCH_LIBRARY_FRAGMENT(lddgan_emulated, m, C10_UID)
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) LDDGAN_EMULATED_##key(m)
#define LDDGAN_EMULATED_CUDA(m) _TORCH_LIBRARY_IMPL(lddgan_emulated, CPU, m, C10_UID)
#define LDDGAN_EMULATED_CPU(m) [[maybe_unused]] static void not_registered(torch::Library& m)
#define LDDGAN_EMULATED_Autograd(m) _TORCH_LIBRARY_IMPL(lddgan_emulated, Autograd, m, C10_UID)
#define LDDGAN_NAMESPACE "lddgan_emulated"

extern "C" const char* emulation_error();  // machine.cpp: of the last launch
