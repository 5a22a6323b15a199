// Definitions that the CPU kernels leave to the host: threads and the choice of instruction set.
#include <ATen/Parallel.h>

#include <cstdlib>
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

static Isa detect() {
  Isa best = Isa::kBaseline;
#if defined(LDDGAN_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    best = Isa::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
    }
  }
#endif
  const char* name = std::getenv("LDDGAN_CPU_ISA");
  std::string wanted = name ? name : "";
  if (wanted == "baseline") return Isa::kBaseline;
  if (wanted == "avx2" && best >= Isa::kAvx2) return Isa::kAvx2;
  if (wanted == "avx512" && best >= Isa::kAvx512) return Isa::kAvx512;
  return best;
}

Isa cpu_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* cpu_isa_name() {
  switch (cpu_isa()) {
    case Isa::kAvx512Bf16:
      return "avx512bf16";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace lddgan
