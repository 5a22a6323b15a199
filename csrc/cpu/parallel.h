// Threads for the CPU kernels: PyTorch's own pool, behind one function that python/ defines.
#pragma once

#include <cstdint>

#include "lddgan/isa.h"

namespace lddgan {

using RangeBody = void (*)(const void* context, int64_t begin, int64_t end);

// Splits [0, count) into ranges of at least `grain` over PyTorch's threads (torch.set_num_threads)
// and calls body on each; runs inline where one range suffices.
void parallel_ranges(int64_t count, int64_t grain, RangeBody body, const void* context);

// The number of threads parallel_ranges may use.
int num_threads();

#if defined(LDDGAN_ISA)
namespace LDDGAN_ISA {
// parallel_for(count, grain, [&](int64_t begin, int64_t end) {...})
template <typename F>
inline void parallel_for(int64_t count, int64_t grain, const F& f) {
  parallel_ranges(
      count, grain,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const F*>(context))(begin, end);
      },
      &f);
}
}  // namespace LDDGAN_ISA
#endif

}  // namespace lddgan
