#include "lddgan/upfirdn2d.h"

#include "compare.h"

namespace {

void filter(Draw& draw, bool by_two) {
  const Dtype dtype = draw.dtype();
  Upfirdn2dArgs a{};
  a.n = draw.of({1, 2}), a.c = draw.of({1, 3, 16, 33}), a.dtype = dtype;
  a.channels_last = draw.flip(), a.reversed = draw.flip();
  int64_t after_x, after_y;
  if (by_two) {
    const bool up = draw.flip();
    a.h = draw.of({2, 4, 7, 8, 16}), a.w = draw.of({2, 4, 5, 8, 16, 32, 70});
    a.up = up ? 2 : 1, a.down = up ? 1 : 2, a.taps_h = a.taps_w = 4, a.separable = true;
    a.pad_x = a.pad_y = up ? 2 : 1, after_x = after_y = 1;
  } else {
    a.h = draw.of({3, 6, 11}), a.w = draw.of({3, 8, 13});
    a.up = draw.of({1, 2, 3}), a.down = draw.of({1, 2, 3}), a.separable = draw.flip();
    a.taps_w = draw.of({1, 3, 4, 6}), a.taps_h = a.separable ? a.taps_w : draw.of({1, 2, 5});
    a.pad_x = draw.of({0, 1, 3}), a.pad_y = draw.of({0, 1, 3});
    after_x = a.taps_w, after_y = a.taps_h;
  }
  a.out_h = (a.h * a.up + a.pad_y + after_y - a.taps_h) / a.down + 1;
  a.out_w = (a.w * a.up + a.pad_x + after_x - a.taps_w) / a.down + 1;
  Array x = draw.array(dtype, a.n * a.c * a.h * a.w);
  Array taps = draw.array(Dtype::kFloat32, a.separable ? a.taps_w : a.taps_h * a.taps_w);
  Array out(dtype, a.n * a.c * a.out_h * a.out_w);
  a.x = x.data(), a.taps = taps.as<float>(), a.out = out.data();
  const Layout from{a.c, a.h * a.w, a.channels_last}, to{a.c, a.out_h * a.out_w, a.channels_last};
  std::vector<double> exact(out.count);
  // Where tap j of an output lies in the input, or -1; the tap's place.
  auto place = [&](int64_t o, int64_t j, int64_t pad, int64_t length) -> int64_t {
    const int64_t at = o * a.down - pad + j;
    return at < 0 || at % a.up != 0 || at / a.up >= length ? -1 : at / a.up;
  };
  auto tap = [&](int64_t j, int64_t count) { return a.reversed ? j : count - 1 - j; };
  for (int64_t i = 0; i < out.count; ++i) {
    const int64_t ox = i % a.out_w, oy = i / a.out_w % a.out_h, c = i / a.out_w / a.out_h % a.c;
    const int64_t n = i / a.out_w / a.out_h / a.c;
    for (int64_t j = 0; j < a.taps_h * a.taps_w; ++j) {
      const int64_t row = tap(j / a.taps_w, a.taps_h), column = tap(j % a.taps_w, a.taps_w);
      const int64_t iy = place(oy, j / a.taps_w, a.pad_y, a.h);
      const int64_t ix = place(ox, j % a.taps_w, a.pad_x, a.w);
      if (iy < 0 || ix < 0) continue;
      const double weight = a.separable ? taps[row] * taps[column] : taps[row * a.taps_w + column];
      exact[to(n, c, oy * a.out_w + ox)] += weight * x[from(n, c, iy * a.w + ix)];
    }
  }
  check(text("upfirdn2d", {int(dtype), a.n, a.c, a.h, a.w, a.up, a.down, a.taps_h, a.taps_w,
                           a.pad_y, a.pad_x, a.separable, a.reversed, a.channels_last}),
        BOTH(upfirdn2d, a), {{&out, exact}});
}

}  // namespace

void resampling(Draw& draw, int count) {
  for (int i = 0; i < count; ++i) filter(draw, true), filter(draw, true), filter(draw, false);
}
