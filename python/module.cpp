// The pybind11 module `_C`: build information. Loading it registers torch.ops.lddgan.*.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "direct.h"
#include "lddgan/isa.h"
#include "replay.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "lddgan_kernels: compiled kernels, registered as torch.ops.lddgan.*";
  lddgan::add_direct_calls(m.ptr());
  lddgan::add_replay(m);
  m.def("build_info", [] {
    pybind11::dict info;
    info["torch"] = TORCH_VERSION;
    info["compiler"] = LDDGAN_COMPILER;
    info["cuda"] = LDDGAN_CUDA_VERSION;                      // "" without CUDA kernels
    info["cuda_architectures"] = LDDGAN_CUDA_ARCHITECTURES;  // "80;90"
    info["schemas"] = LDDGAN_SCHEMAS;                        // lddgan_kernels/_schemas.py
    info["cpu_isa"] = lddgan::cpu_isa_name();
    return info;
  });
}
