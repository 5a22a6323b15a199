// One source, several instruction sets, chosen at run time.
//
// CMake compiles every file of csrc/cpu once per instruction set with LDDGAN_ISA defined as its
// name; all code of such a file lives in namespace lddgan::LDDGAN_ISA, and nothing in it may be a
// non-static inline function outside that namespace (the linker would keep one copy of any set).
// LDDGAN_DECLARE_CPU(name, Args) declares the copies and lddgan::cpu::name, which picks one.
#pragma once

// f(isa, name, Args) for those of this architecture, from the least on.
#if defined(LDDGAN_X86)
#define LDDGAN_FOR_EACH_ISA(f, name, Args) \
  f(baseline, name, Args) f(avx2, name, Args) f(avx512, name, Args) f(avx512bf16, name, Args)
#elif defined(LDDGAN_AARCH64)
#define LDDGAN_FOR_EACH_ISA(f, name, Args) f(baseline, name, Args) f(neon, name, Args)
#else
#define LDDGAN_FOR_EACH_ISA(f, name, Args) f(baseline, name, Args)
#endif

namespace lddgan {

#define LDDGAN_ENUMERATOR(isa, name, Args) isa,
enum class Isa { LDDGAN_FOR_EACH_ISA(LDDGAN_ENUMERATOR, , ) };

// The best instruction set of this processor, or the lesser one named by LDDGAN_CPU_ISA. Decided
// once.
Isa cpu_isa();
const char* cpu_isa_name();

}  // namespace lddgan

#define LDDGAN_DECLARE_OF_ISA(isa, name, Args) \
  namespace lddgan::isa {                      \
  void name(const Args&);                      \
  }
#define LDDGAN_CALL_OF_ISA(isa, name, Args) \
  case ::lddgan::Isa::isa:                  \
    return ::lddgan::isa::name(args);

#define LDDGAN_DECLARE_CPU(name, Args)                                                   \
  LDDGAN_FOR_EACH_ISA(LDDGAN_DECLARE_OF_ISA, name, Args)                                 \
  namespace lddgan::cpu {                                                                \
  static inline void name(const Args& args) {                                            \
    switch (::lddgan::cpu_isa()) { LDDGAN_FOR_EACH_ISA(LDDGAN_CALL_OF_ISA, name, Args) } \
  }                                                                                      \
  }
