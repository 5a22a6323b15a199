#include "lddgan/upfirdn2d.h"

#include <cstdlib>

#include "upfirdn2d_channels_last.h"

namespace lddgan::LDDGAN_ISA {

namespace {

// Output rows (down) or row pairs (up) [begin, end) of all samples, channels_last.
template <typename T, bool up>
void channels_last_rows(const Upfirdn2dArgs& a, bool stream, int64_t begin, int64_t end) {
  const RowWalk walk{a.c, a.w, a.out_w, a.c, a.c, a.pad_x, weights_of(a)};
  const int64_t stride = a.w * a.c, out_stride = a.out_w * a.c;
  const int64_t tasks = up ? (a.out_h + 1) / 2 : a.out_h;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / tasks, y = task % tasks;
    const T* plane = static_cast<const T*>(a.x) + n * a.h * stride;
    T* out = static_cast<T*>(a.out) + (n * a.out_h + (up ? 2 * y : y)) * out_stride;
    T* odd_out = up && 2 * y + 1 < a.out_h ? out + out_stride : nullptr;
    const T* rows[kTaps];
    if constexpr (up) {
      find_rows<T, 3>(plane, y - a.pad_y / 2, a.h, stride, rows);
    } else {
      find_rows<T, kTaps>(plane, 2 * y - a.pad_y, a.h, stride, rows);
    }
    resample_rows<up>(walk, rows, out, odd_out, stream);
  }
}

template <typename T, bool up>
void by_two(const Upfirdn2dArgs& a) {
  if (!a.channels_last) return by_two_planes<T, up>(a);
  const int64_t tasks = up ? (a.out_h + 1) / 2 : a.out_h;
  const int64_t per_task = (up ? 2 : 1) * a.out_w * a.c;
  const bool stream = a.c % kWidth == 0 && should_stream(a);
  parallel_for(a.n * tasks, kGrain / per_task + 1, [&](int64_t begin, int64_t end) {
    channels_last_rows<T, up>(a, stream, begin, end);
    if (stream) stream_fence();
  });
}

// --- Any taps and factors.

// The inputs of one output along one axis: taps tap, tap + up, ... meet x[index], x[index + 1], ...
struct Reach {
  int64_t index, tap, count;
};

LDDGAN_INLINE Reach reach(int64_t out, int64_t up, int64_t down, int64_t pad, int64_t taps,
                          int64_t length) {
  const int64_t start = out * down - pad;  // in the stuffed signal
  int64_t index = start > 0 ? (start + up - 1) / up : 0;
  int64_t tap = index * up - start;
  int64_t count = tap < taps ? (taps - tap + up - 1) / up : 0;
  if (count > length - index) count = length > index ? length - index : 0;
  return {index, tap, count};
}

// Output rows [begin, end) of all planes (contiguous) or samples (channels_last).
template <typename T>
void any_rows(const Upfirdn2dArgs& a, const float* kernel, int64_t begin, int64_t end) {
  const int64_t channels = a.channels_last ? a.c : 1;  // adjacent in memory, treated alike
  const T* limit = static_cast<const T*>(a.x) + a.n * a.c * a.h * a.w;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / a.out_h;
    const Reach v = reach(task % a.out_h, a.up, a.down, a.pad_y, a.taps_h, a.h);
    const T* x = static_cast<const T*>(a.x) + plane * a.h * a.w * channels;
    for (int64_t o = 0; o < a.out_w; ++o) {
      const Reach u = reach(o, a.up, a.down, a.pad_x, a.taps_w, a.w);
      T* out = static_cast<T*>(a.out) + (task * a.out_w + o) * channels;
      auto sum = [&](auto zero, const auto& get) {
        auto total = zero;
        for (int64_t i = 0; i < v.count; ++i) {
          const float* f = kernel + (v.tap + i * a.up) * a.taps_w + u.tap;
          const T* p = x + ((v.index + i) * a.w + u.index) * channels;
          auto row_total = zero;  // row by row: less rounding than one long sum
          for (int64_t j = 0; j < u.count; ++j) row_total += f[j * a.up] * get(p + j * channels);
          total += row_total;
        }
        return total;
      };
      int64_t c = 0;
      for (; c + kWidth <= channels; c += kWidth) {
        store(out + c, sum(Vec{}, [&](const T* p) { return load(p + c); }));
      }
      if (channels == 1) {
        store_tail(out, broadcast(sum(0.0f, [&](const T* p) { return to_float(*p); })), 1);
      } else if (c < channels) {
        Vec last = sum(Vec{}, [&](const T* p) { return load_until(p + c, limit); });
        store_tail(out + c, last, int(channels - c));
      }
    }
  }
}

template <typename T>
void any(const Upfirdn2dArgs& a) {
  const int64_t size = a.taps_h * a.taps_w;
  float* kernel = static_cast<float*>(std::malloc(size * sizeof(float)));
  for (int64_t i = 0; i < size; ++i) {
    const int64_t from = a.reversed ? i : size - 1 - i;
    kernel[i] = a.separable ? a.taps[from / a.taps_w] * a.taps[from % a.taps_w] : a.taps[from];
  }
  const int64_t rows = a.n * (a.channels_last ? 1 : a.c) * a.out_h;
  const int64_t per_row = a.out_w * (a.channels_last ? a.c : 1);
  parallel_for(rows, kGrain / 8 / per_row + 1,
               [&](int64_t begin, int64_t end) { any_rows<T>(a, kernel, begin, end); });
  std::free(kernel);
}

}  // namespace

void upfirdn2d(const Upfirdn2dArgs& a) {
  if (a.n * a.c * a.out_h * a.out_w == 0) return;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool four = a.separable && a.taps_w == kTaps;
    if (four && a.up == 2 && a.down == 1 && a.pad_x % 2 == 0 && a.pad_y % 2 == 0) {
      by_two<T, true>(a);
    } else if (four && a.up == 1 && a.down == 2) {
      by_two<T, false>(a);
    } else {
      any<T>(a);
    }
  });
}

}  // namespace lddgan::LDDGAN_ISA
