#include "lddgan/upfirdn2d.h"

#include <cstdlib>

#include "lddgan/upfirdn2d_planes.h"

namespace lddgan::LDDGAN_ISA {

namespace {

// --- By two with four separable taps, channels_last: vectors over channels, vertical sums of
// columns slide along W in registers.

// Output columns whose channels are treated block by block before the next: all channels of a pixel
// reach memory close in time.
constexpr int64_t kColumns = 8;

// kPartial: fewer channels than lanes, vectors reach into the next pixels. kStream: past the
// caches.
enum class Access { kWhole, kPartial, kStream };

template <Access access, typename T>
LDDGAN_INLINE Vec get(const T* p, const T* limit) {
  if constexpr (access == Access::kPartial) return load_until(p, limit);
  return load(p);
}
template <Access access, typename T>
LDDGAN_INLINE void put(T* p, Vec v, const T* limit) {
  if constexpr (access == Access::kPartial) {
    store_until(p, v, limit);
  } else {
    store_either<access == Access::kStream>(p, v);
  }
}

// Channels [c0, c0 + count * kWidth) of columns [begin, end) of one output row.
template <typename T, int count, Access access>
LDDGAN_INLINE void down_channels(const Upfirdn2dArgs& a, const T* const* rows, T* out,
                                 const Weights& w, int64_t c0, int64_t begin, int64_t end) {
  const T* limit = static_cast<const T*>(a.x) + a.n * a.h * a.w * a.c;
  Vec v[kTaps][count];
  auto column = [&](int64_t x, Vec* sum) {
    const bool inside = x >= 0 && x < a.w;
    for (int b = 0; b < count; ++b) {
      const int64_t at = x * a.c + c0 + b * kWidth;
      auto load_at = [&](const T* row) { return get<access>(row + at, limit); };
      sum[b] = inside ? down_column(rows, w, load_at) : Vec{};
    }
  };
  column(2 * begin - a.pad_x, v[0]);
  column(2 * begin - a.pad_x + 1, v[1]);
  for (int64_t o = begin; o < end; ++o) {
    column(2 * o - a.pad_x + 2, v[2]);
    column(2 * o - a.pad_x + 3, v[3]);
    for (int b = 0; b < count; ++b) {
      put<access>(out + o * a.c + c0 + b * kWidth,
                  weigh_down(w, v[0][b], v[1][b], v[2][b], v[3][b]), out + a.out_w * a.c);
      v[0][b] = v[2][b];
      v[1][b] = v[3][b];
    }
  }
}

// The same of one or two output rows, `begin` even; odd_out is null where there is one.
template <typename T, int count, Access access>
LDDGAN_INLINE void up_channels(const Upfirdn2dArgs& a, const T* const* rows, T* even_out,
                               T* odd_out, const Weights& w, int64_t c0, int64_t begin,
                               int64_t end) {
  const T* limit = static_cast<const T*>(a.x) + a.n * a.h * a.w * a.c;
  EvenOdd v[3][count];
  auto column = [&](int64_t x, EvenOdd* sums) {
    const bool inside = x >= 0 && x < a.w;
    for (int b = 0; b < count; ++b) {
      const int64_t at = x * a.c + c0 + b * kWidth;
      auto load_at = [&](const T* row) { return get<access>(row + at, limit); };
      sums[b] = inside ? up_column(rows, w, load_at) : EvenOdd{Vec{}, Vec{}};
    }
  };
  const int64_t first = -a.pad_x / 2;
  column(first + begin / 2, v[0]);
  column(first + begin / 2 + 1, v[1]);
  for (int64_t o = begin; o < end; o += 2) {
    column(first + o / 2 + 2, v[2]);
    auto row = [&](T* out, Vec EvenOdd::* sum) {
      const T* row_end = out + a.out_w * a.c;
      T* at = out + o * a.c + c0;
      for (int b = 0; b < count; ++b) {
        put<access>(at + b * kWidth, weigh_even(w, v[0][b].*sum, v[1][b].*sum), row_end);
      }
      if (o + 1 == a.out_w) return;
      for (int b = 0; b < count; ++b) {
        put<access>(at + a.c + b * kWidth, weigh_odd(w, v[1][b].*sum, v[2][b].*sum), row_end);
      }
    };
    row(even_out, &EvenOdd::even);
    if (odd_out) row(odd_out, &EvenOdd::odd);
    for (int b = 0; b < count; ++b) {
      v[0][b] = v[1][b];
      v[1][b] = v[2][b];
    }
  }
}

// Output rows (down) or row pairs (up) [begin, end) of all samples.
template <typename T, bool up>
void channels_last_rows(const Upfirdn2dArgs& a, bool stream, int64_t begin, int64_t end) {
  constexpr int kBlock = kWidth == 16 ? (up ? 2 : 4) : 1;  // vectors in flight, by registers
  const Weights w = weights_of(a);
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
    int64_t from = 0, to = 0;
    auto channels = [&](auto count, auto access, int64_t c0) {
      if constexpr (up) {
        up_channels<T, count.value, access.value>(a, rows, out, odd_out, w, c0, from, to);
      } else {
        down_channels<T, count.value, access.value>(a, rows, out, w, c0, from, to);
      }
    };
    constexpr std::integral_constant<int, kBlock> block;
    constexpr std::integral_constant<int, 1> one;
    constexpr std::integral_constant<Access, Access::kWhole> whole;
    constexpr std::integral_constant<Access, Access::kPartial> partial;
    constexpr std::integral_constant<Access, Access::kStream> streamed;
    for (; from < a.out_w; from = to) {
      to = a.out_w - from < kColumns ? a.out_w : from + kColumns;
      if (a.c < kWidth) {
        channels(one, partial, 0);
        continue;
      }
      int64_t c0 = 0;
      for (; c0 + kBlock * kWidth <= a.c; c0 += kBlock * kWidth) {
        stream ? channels(block, streamed, c0) : channels(block, whole, c0);
      }
      for (; c0 + kWidth <= a.c; c0 += kWidth) channels(one, whole, c0);
      if (c0 < a.c) channels(one, whole, a.c - kWidth);  // overlaps the one before
    }
  }
}

template <typename T, bool up>
void by_two(const Upfirdn2dArgs& a) {
  if (!a.channels_last) return by_two_planes<T, up>(a);
  const int64_t tasks = up ? (a.out_h + 1) / 2 : a.out_h;
  const int64_t per_task = (up ? 2 : 1) * a.out_w * a.c;
  const bool stream = a.c % kWidth == 0 && worth_streaming(a);
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
