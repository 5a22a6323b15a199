// Definitions that the CPU kernels leave to the host: threads and the choice of instruction set.
#include <ATen/Parallel.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/parallel.h"
#include "lddgan/isa.h"

namespace lddgan {

void parallel_ranges(int64_t count, int64_t grain, RangeBody body, const void* context) {
  if (count <= grain || at::get_num_threads() == 1) {
    if (count > 0) body(context, 0, count);
    return;
  }
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

int num_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

#define LDDGAN_ISA_NAME(isa, name, Args) #isa,
static constexpr const char* kIsaNames[] = {LDDGAN_FOR_EACH_ISA(LDDGAN_ISA_NAME, , )};

static Isa detect() {
#if defined(LDDGAN_X86)
  Isa best = Isa::baseline;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
    }
  }
#elif defined(LDDGAN_AARCH64)
  const Isa best = Isa::neon;  // all have it
#else
  const Isa best = Isa::baseline;
#endif
  const char* name = std::getenv("LDDGAN_CPU_ISA");
  const std::string wanted = name ? name : "";
  if (wanted.empty()) return best;
  std::string names;
  for (int isa = 0; isa <= int(best); ++isa) {
    if (wanted == kIsaNames[isa]) return Isa(isa);
    names += (isa ? ", " : "") + std::string(kIsaNames[isa]);
  }
  throw std::invalid_argument("LDDGAN_CPU_ISA must be one of " + names +
                              " (what this processor has), got '" + wanted + "'");
}

Isa cpu_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* cpu_isa_name() { return kIsaNames[int(cpu_isa())]; }

}  // namespace lddgan
