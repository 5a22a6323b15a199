// One source, several instruction sets, chosen at run time.
//
// CMake compiles every file of csrc/cpu once per instruction set with LDDGAN_ISA defined as its
// name; all code of such a file lives in namespace lddgan::LDDGAN_ISA, and nothing in it may be a
// non-static inline function outside that namespace (the linker would keep one copy of any set).
// LDDGAN_DECLARE_CPU(name, Args) declares the copies and lddgan::cpu::name, which picks one.
#pragma once

namespace lddgan {

enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// The best instruction set of this processor, or the lesser one named by LDDGAN_CPU_ISA
// (baseline, avx2, avx512, avx512bf16). Decided once.
Isa cpu_isa();
const char* cpu_isa_name();

}  // namespace lddgan

#if defined(LDDGAN_X86)
#define LDDGAN_DECLARE_CPU(name, Args)           \
  namespace lddgan::baseline {                   \
  void name(const Args&);                        \
  }                                              \
  namespace lddgan::avx2 {                       \
  void name(const Args&);                        \
  }                                              \
  namespace lddgan::avx512 {                     \
  void name(const Args&);                        \
  }                                              \
  namespace lddgan::avx512bf16 {                 \
  void name(const Args&);                        \
  }                                              \
  namespace lddgan::cpu {                        \
  static inline void name(const Args& args) {    \
    switch (::lddgan::cpu_isa()) {               \
      case ::lddgan::Isa::kAvx512Bf16:           \
        return ::lddgan::avx512bf16::name(args); \
      case ::lddgan::Isa::kAvx512:               \
        return ::lddgan::avx512::name(args);     \
      case ::lddgan::Isa::kAvx2:                 \
        return ::lddgan::avx2::name(args);       \
      default:                                   \
        return ::lddgan::baseline::name(args);   \
    }                                            \
  }                                              \
  }
#else
#define LDDGAN_DECLARE_CPU(name, Args)                                          \
  namespace lddgan::baseline {                                                  \
  void name(const Args&);                                                       \
  }                                                                             \
  namespace lddgan::cpu {                                                       \
  static inline void name(const Args& args) { ::lddgan::baseline::name(args); } \
  }
#endif
