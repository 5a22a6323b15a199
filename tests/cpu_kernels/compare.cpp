// Holds every kernel of csrc/cpu in one instruction set (LDDGAN_TESTED) to the error rule, against
// float64, with the baseline's kernels for the plain composition: drawn sizes, dtypes and layouts.
// Without PyTorch, so that a cross compiler can build it and an emulator run it.
//
//   compare [COUNT [SEED]]
#include "compare.h"

#include <map>

#include "cpu/parallel.h"

namespace lddgan {

// Three threads, one after the other.
void parallel_ranges(int64_t count, int64_t grain, RangeBody body, const void* context) {
  const int64_t third = (count + 2) / 3, range = third > grain ? third : grain;
  for (int64_t begin = 0; begin < count; begin += range) {
    body(context, begin, begin + range < count ? begin + range : count);
  }
}

int num_threads() { return 3; }

}  // namespace lddgan

// The error rule, of the mean over a kernel's problems and of the greatest error: one problem's few
// elements may be met exactly by luck.
void judge() {
  struct Errors {
    double count = 0, roundoff = 0, ours = 0, plain = 0, most = 0, most_plain = 0;
    std::string worst;
  };
  std::map<std::string, Errors> all;
  for (const Record& r : records) {
    Errors& e =
        all[r.what.substr(0, r.what.find(' ')) + text(": dtype, output", {int(r.dtype), r.output})];
    e.count += 1, e.roundoff = r.roundoff, e.ours += r.ours, e.plain += r.plain;
    e.most_plain = std::fmax(e.most_plain, r.plain);
    if (r.ours >= e.most) e.most = r.ours, e.worst = r.what;
  }
  for (auto& [name, e] : all) {
    e.ours /= e.count, e.plain /= e.count;
    std::printf("%s: %.0f problems, mean error %.2e (baseline %.2e), greatest %.2e (%.2e)\n",
                name.c_str(), e.count, e.ours, e.plain, e.most, e.most_plain);
    if (!(e.ours <= 2 * e.plain + e.roundoff)) fail(name + ", the mean");
    if (!(e.most <= 2 * e.most_plain + e.roundoff)) fail(name + ", the greatest: " + e.worst);
    if (!(e.most_plain < 0.1)) fail(name + ": not what the baseline computes");
  }
}

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 10;
  Draw draw(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  for (auto* cases : {convolutions, norms, elementwise, resampling, noise, codes}) {
    cases(draw, count);
  }
  judge();
  std::printf("%d failures\n", failures);
  return failures > 0;
}
