#include "cpu/nearest_code.h"

#include "compare.h"

namespace {

void nearest(Draw& draw) {
  const Dtype dtype = draw.dtype();
  const int64_t n = draw.of({1, 2}), plane = draw.of({1, 9, 64, 300}), pixels = n * plane;
  const int64_t depth = draw.of({1, 2, 3, 4, 5, 16}), codes = draw.of({1, 7, 64, 500});
  const Layout layout{depth, plane, draw.flip()};
  Array z = draw.array(dtype, pixels * depth, 1, 5);
  Array codebook = draw.array(Dtype::kFloat32, codes * depth, 1, 5);
  for (int64_t d = 0; d < depth; ++d) codebook.set((codes - 1) * depth + d, codebook[d]);  // a tie
  for (int64_t d = 0; d < depth; ++d) z.set(layout(0, d, 0), codebook[d]);
  Array out(dtype, pixels * depth);
  Array workspace(Dtype::kFloat32, nearest_code_workspace(pixels, depth, codes));
  std::vector<int64_t> indices(pixels, -1);
  NearestCodeArgs args{z.data(),
                       codebook.as<float>(),
                       out.data(),
                       indices.data(),
                       workspace.as<float>(),
                       pixels,
                       plane,
                       depth,
                       codes,
                       layout.channels_last,
                       dtype};
  LDDGAN_TESTED::nearest_code(args);
  const std::string name =
      text("nearest_code", {int(dtype), n, plane, depth, codes, layout.channels_last});
  for (int64_t p = 0; p < pixels; ++p) {
    auto at = [&](int64_t d) { return layout(p / plane, d, p % plane); };
    double least = INFINITY;
    int64_t best = -1;
    for (int64_t k = 0; k < codes; ++k) {
      double distance = 0;
      for (int64_t d = 0; d < depth; ++d)
        distance += std::pow(z[at(d)] - codebook[k * depth + d], 2);
      if (distance < least) least = distance, best = k;
    }
    if (indices[p] != best)
      return fail(name + text(": pixel, index, exact", {p, indices[p], best}));
    for (int64_t d = 0; d < depth; ++d) {
      Array stored(dtype, 1);
      stored.set(0, codebook[best * depth + d]);
      if (out[at(d)] != stored[0]) return fail(name + text(": value of pixel", {p}));
    }
  }
  if (!out.is_guarded() || !workspace.is_guarded()) fail(name + ": wrote outside");
}

}  // namespace

void codes(Draw& draw, int count) {
  for (int i = 0; i < count; ++i) nearest(draw);
}
