#include "lddgan/upfirdn2d.h"

#include <cstdlib>

#include "lddgan/parallel.h"
#include "lddgan/vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr int64_t kGrain = 8192;  // outputs a thread; below, waking a thread costs more
constexpr int kTaps = 4;          // of the specialised kernels
constexpr int kChunk = 256;       // outputs (down) or output pairs (up) of a row at a time
constexpr int kFlatLimit = 2048;  // elements of a plane that the flat kernels keep in scratch
constexpr int kBlock = kWidth == 16 ? 4 : 2;  // channel vectors in flight; AVX-512 has 32 registers

// Weight j multiplies the stuffed signal at out * down - pad + j.
struct Weights {
  float f[kTaps];
};

Weights weights_of(const Upfirdn2dArgs& a) {
  Weights w;
  for (int j = 0; j < kTaps; ++j) w.f[j] = a.taps[a.reversed ? j : kTaps - 1 - j];
  return w;
}

// --- By 2, four separable taps. Down: out[o] reads x[2 o - pad ... + 3]. Up, with an even pad and
// first = k - pad / 2: out[2 k] = f0 x[first] + f2 x[first + 1], out[2 k + 1] = f1 x[first + 1] +
// f3 x[first + 2].

// Vectors that may reach past a pixel's last channel: into the next pixels when reading, whose
// lanes are then of no use, and when writing, which those pixels' own values overwrite afterwards.
template <typename T, bool partial>
LDDGAN_INLINE Vec load_until(const T* p, const T* limit) {
  if (partial && limit - p < kWidth) return load_tail(p, int(limit - p));
  return load(p);
}
template <typename T, bool partial>
LDDGAN_INLINE void store_until(T* p, Vec v, const T* limit) {
  if (partial && limit - p < kWidth) {
    store_tail(p, v, int(limit - p));
  } else {
    store(p, v);
  }
}

// The vertical sum of a column chunk: `count` vectors at `offset` of each row that exists.
template <typename T, int count, bool partial>
LDDGAN_INLINE void down_column(const T* const* rows, const T* limit, const Weights& w,
                               int64_t offset, Vec* sum) {
  for (int b = 0; b < count; ++b) sum[b] = Vec{};
  for (int i = 0; i < kTaps; ++i) {
    if (rows[i] == nullptr) continue;
    for (int b = 0; b < count; ++b) {
      sum[b] += w.f[i] * load_until<T, partial>(rows[i] + offset + b * kWidth, limit);
    }
  }
}

// The vertical sums of the even and the odd output row.
template <typename T, int count, bool partial>
LDDGAN_INLINE void up_column(const T* const* rows, const T* limit, const Weights& w, int64_t offset,
                             Vec* even_sum, Vec* odd_sum) {
  for (int b = 0; b < count; ++b) {
    Vec r[3];
    for (int i = 0; i < 3; ++i) {
      r[i] = rows[i] ? load_until<T, partial>(rows[i] + offset + b * kWidth, limit) : Vec{};
    }
    even_sum[b] = w.f[0] * r[0] + w.f[2] * r[1];
    odd_sum[b] = w.f[1] * r[1] + w.f[3] * r[2];
  }
}

// Rows first ... first + count - 1 of a plane whose rows are `stride` elements; null outside.
template <typename T, int count>
LDDGAN_INLINE void find_rows(const T* plane, int64_t first, int64_t height, int64_t stride,
                             const T** rows) {
  for (int i = 0; i < count; ++i) {
    int64_t row = first + i;
    rows[i] = row >= 0 && row < height ? plane + row * stride : nullptr;
  }
}

// Channels [c0, c0 + count * kWidth) of one output row, channels_last; column sums slide along W.
template <typename T, int count, bool partial>
LDDGAN_INLINE void down_channels(const Upfirdn2dArgs& a, const T* const* rows, T* out,
                                 const Weights& w, int64_t c0) {
  const T* limit = static_cast<const T*>(a.x) + a.n * a.h * a.w * a.c;
  Vec v[kTaps][count];
  auto column = [&](int64_t x, Vec* sum) {
    if (x >= 0 && x < a.w) {
      return down_column<T, count, partial>(rows, limit, w, x * a.c + c0, sum);
    }
    for (int b = 0; b < count; ++b) sum[b] = Vec{};
  };
  column(-a.pad_x, v[0]);
  column(-a.pad_x + 1, v[1]);
  for (int64_t o = 0; o < a.out_w; ++o) {
    column(2 * o - a.pad_x + 2, v[2]);
    column(2 * o - a.pad_x + 3, v[3]);
    for (int b = 0; b < count; ++b) {
      Vec sum = w.f[0] * v[0][b] + w.f[1] * v[1][b] + w.f[2] * v[2][b] + w.f[3] * v[3][b];
      store_until<T, partial>(out + o * a.c + c0 + b * kWidth, sum, out + a.out_w * a.c);
      v[0][b] = v[2][b];
      v[1][b] = v[3][b];
    }
  }
}

template <typename T, int count, bool partial>
LDDGAN_INLINE void up_channels(const Upfirdn2dArgs& a, const T* const* rows, T* even_out,
                               T* odd_out, const Weights& w, int64_t c0) {
  const T* limit = static_cast<const T*>(a.x) + a.n * a.h * a.w * a.c;
  Vec e[3][count], d[3][count];  // column sums of the even and the odd output row
  auto column = [&](int64_t x, Vec* even_sum, Vec* odd_sum) {
    if (x >= 0 && x < a.w) {
      return up_column<T, count, partial>(rows, limit, w, x * a.c + c0, even_sum, odd_sum);
    }
    for (int b = 0; b < count; ++b) even_sum[b] = odd_sum[b] = Vec{};
  };
  const int64_t first = -a.pad_x / 2;
  column(first, e[0], d[0]);
  column(first + 1, e[1], d[1]);
  for (int64_t o = 0; o < a.out_w; o += 2) {
    column(first + o / 2 + 2, e[2], d[2]);
    auto row = [&](T* out, Vec(*v)[count]) {
      for (int b = 0; b < count; ++b) {
        T* at = out + o * a.c + c0 + b * kWidth;
        const T* row_end = out + a.out_w * a.c;
        store_until<T, partial>(at, w.f[0] * v[0][b] + w.f[2] * v[1][b], row_end);
        if (o + 1 < a.out_w) {
          store_until<T, partial>(at + a.c, w.f[1] * v[1][b] + w.f[3] * v[2][b], row_end);
        }
        v[0][b] = v[1][b];
        v[1][b] = v[2][b];
      }
    };
    row(even_out, e);
    if (odd_out) row(odd_out, d);
  }
}

// Output rows (down) or row pairs (up) [begin, end) of all samples, channels_last.
template <typename T, bool up>
void by_two_channels_last(const Upfirdn2dArgs& a, int64_t begin, int64_t end) {
  const Weights w = weights_of(a);
  const int64_t stride = a.w * a.c, out_stride = a.out_w * a.c;
  const int64_t tasks = up ? (a.out_h + 1) / 2 : a.out_h;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / tasks, y = task % tasks;
    const T* plane = static_cast<const T*>(a.x) + n * a.h * stride;
    T* out = static_cast<T*>(a.out) + (n * a.out_h + (up ? 2 * y : y)) * out_stride;
    const T* rows[kTaps];
    if constexpr (up) {
      find_rows<T, 3>(plane, y - a.pad_y / 2, a.h, stride, rows);
    } else {
      find_rows<T, kTaps>(plane, 2 * y - a.pad_y, a.h, stride, rows);
    }
    auto channels = [&](auto count, auto partial, int64_t c0) {
      if constexpr (up) {
        T* odd_out = 2 * y + 1 < a.out_h ? out + out_stride : nullptr;
        up_channels<T, count.value, partial.value>(a, rows, out, odd_out, w, c0);
      } else {
        down_channels<T, count.value, partial.value>(a, rows, out, w, c0);
      }
    };
    int64_t c0 = 0;
    for (; c0 + kBlock * kWidth <= a.c; c0 += kBlock * kWidth) {
      channels(std::integral_constant<int, kBlock>(), std::false_type(), c0);
    }
    constexpr std::integral_constant<int, 1> one;
    for (; c0 + kWidth <= a.c; c0 += kWidth) channels(one, std::false_type(), c0);
    if (c0 == a.c) continue;
    if (a.c > kWidth) {  // the last vector overlaps the one before
      channels(one, std::false_type(), a.c - kWidth);
    } else {
      channels(one, std::true_type(), 0);
    }
  }
}

template <typename T>
LDDGAN_INLINE void store_some(T* p, Vec v, int64_t count) {
  if (count >= kWidth) {
    store(p, v);
  } else if (count > 0) {
    store_tail(p, v, int(count));
  }
}

// The part of a chunk's columns [first, first + count) that lies in the image; the rest of the
// scratch, and a margin that vectors may read, becomes zero.
template <typename F>
LDDGAN_INLINE void for_columns(int64_t first, int64_t count, int64_t width, int64_t margin,
                               float* const* scratch, int buffers, const F& f) {
  int64_t begin = first < 0 ? -first : 0;
  int64_t end = first + count > width ? width - first : count;
  if (begin > count) begin = count;
  if (end < begin) end = begin;
  for (int s = 0; s < buffers; ++s) {
    for (int64_t j = 0; j < begin; ++j) scratch[s][j] = 0;
    for (int64_t j = end; j < count + margin; ++j) scratch[s][j] = 0;
  }
  for (int64_t j = begin; j < end; j += kWidth) f(j, end - j < kWidth ? int(end - j) : kWidth);
}

// Output rows [begin, end) of all planes, contiguous.
template <typename T>
void down_rows(const Upfirdn2dArgs& a, int64_t begin, int64_t end) {
  const Weights w = weights_of(a);
  float scratch[2 * kChunk + 2 + 3 * kWidth];
  float* buffers[1] = {scratch};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / a.out_h, y = task % a.out_h;
    const T* rows[kTaps];
    find_rows<T, kTaps>(static_cast<const T*>(a.x) + plane * a.h * a.w, 2 * y - a.pad_y, a.h, a.w,
                        rows);
    T* out = static_cast<T*>(a.out) + task * a.out_w;
    for (int64_t o0 = 0; o0 < a.out_w; o0 += kChunk) {
      const int64_t length = a.out_w - o0 < kChunk ? a.out_w - o0 : kChunk;
      const int64_t first = 2 * o0 - a.pad_x;
      for_columns(first, 2 * length + 2, a.w, 2 * kWidth, buffers, 1, [&](int64_t j, int count) {
        Vec sum = Vec{};
        for (int i = 0; i < kTaps; ++i) {
          if (rows[i] == nullptr) continue;
          const T* p = rows[i] + first + j;
          sum += w.f[i] * (count == kWidth ? load(p) : load_tail(p, count));
        }
        store_some(scratch + j, sum, count);
      });
      for (int64_t o = 0; o < length; o += kWidth) {
        const float* s = scratch + 2 * o;
        Vec v0 = load(s), v1 = load(s + kWidth), v2 = load(s + 2), v3 = load(s + 2 + kWidth);
        Vec sum = w.f[0] * even(v0, v1) + w.f[1] * odd(v0, v1) + w.f[2] * even(v2, v3) +
                  w.f[3] * odd(v2, v3);
        store_some(out + o0 + o, sum, length - o);
      }
    }
  }
}

// Output row pairs [begin, end) of all planes, contiguous.
template <typename T>
void up_rows(const Upfirdn2dArgs& a, int64_t begin, int64_t end) {
  const Weights w = weights_of(a);
  float scratch[2][kChunk + 2 + 2 * kWidth];
  float* buffers[2] = {scratch[0], scratch[1]};
  const int64_t tasks = (a.out_h + 1) / 2, pairs = (a.out_w + 1) / 2;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / tasks, y = task % tasks;
    const T* rows[3];
    find_rows<T, 3>(static_cast<const T*>(a.x) + plane * a.h * a.w, y - a.pad_y / 2, a.h, a.w,
                    rows);
    T* out = static_cast<T*>(a.out) + (plane * a.out_h + 2 * y) * a.out_w;
    const int out_rows = 2 * y + 1 < a.out_h ? 2 : 1;
    for (int64_t k0 = 0; k0 < pairs; k0 += kChunk) {
      const int64_t length = pairs - k0 < kChunk ? pairs - k0 : kChunk;
      const int64_t first = k0 - a.pad_x / 2;
      for_columns(first, length + 2, a.w, kWidth, buffers, 2, [&](int64_t j, int count) {
        Vec r[3];
        for (int i = 0; i < 3; ++i) {
          const T* p = rows[i] + first + j;
          r[i] = !rows[i] ? Vec{} : count == kWidth ? load(p) : load_tail(p, count);
        }
        store_some(scratch[0] + j, w.f[0] * r[0] + w.f[2] * r[1], count);
        store_some(scratch[1] + j, w.f[1] * r[1] + w.f[3] * r[2], count);
      });
      for (int s = 0; s < out_rows; ++s) {
        for (int64_t k = 0; k < length; k += kWidth) {
          const float* p = scratch[s] + k;
          Vec v0 = load(p), v1 = load(p + 1), v2 = load(p + 2);
          Vec left = w.f[0] * v0 + w.f[2] * v1, right = w.f[1] * v1 + w.f[3] * v2;
          const int64_t o = 2 * (k0 + k), rest = a.out_w - o;
          store_some(out + s * a.out_w + o, interleave_low(left, right), rest);
          store_some(out + s * a.out_w + o + kWidth, interleave_high(left, right), rest - kWidth);
        }
      }
    }
  }
}

// --- The same on rows narrower than a vector, with the pads that make H -> H / 2 or 2 H exactly:
// planes as flat arrays, so that vectors span rows. `w` is the narrower width.

// Each row's elements one to the right or left; zero enters.
template <int w>
LDDGAN_INLINE Vec from_left(Vec v) {
  return shuffle<[](int i) { return i % w == 0 ? kWidth : i - 1; }>(v, Vec{});
}
template <int w>
LDDGAN_INLINE Vec from_right(Vec v) {
  return shuffle<[](int i) { return i % w == w - 1 ? kWidth : i + 1; }>(v, Vec{});
}

template <typename T, int w>
void down_flat(const Upfirdn2dArgs& a, int64_t begin, int64_t end) {
  const Weights f = weights_of(a);
  const int size = int(a.h) * w, out_size = size / 2;
  float scratch[w + kFlatLimit + w + 2 * kWidth] = {};
  float* h = scratch + w;  // rows of the plane filtered along W, between two rows of zeros
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* x = static_cast<const T*>(a.x) + plane * size * 2;
    T* out = static_cast<T*>(a.out) + plane * out_size;
    for (int i = 0; i < size; i += kWidth) {
      Vec v0 = load(x + 2 * i), v1 = load(x + 2 * i + kWidth);
      Vec l = even(v0, v1), r = odd(v0, v1);
      store(h + i, f.f[0] * from_left<w>(r) + f.f[1] * l + f.f[2] * r + f.f[3] * from_right<w>(l));
    }
    for (int i = 0; i < out_size; i += kWidth) {
      const float* p = h + 2 * i - w;
      Vec v0 = load(p), v1 = load(p + kWidth), v2 = load(p + 2 * w), v3 = load(p + 2 * w + kWidth);
      Vec sum = f.f[0] * even<w>(v0, v1) + f.f[1] * odd<w>(v0, v1) + f.f[2] * even<w>(v2, v3) +
                f.f[3] * odd<w>(v2, v3);
      store_some(out + i, sum, out_size - i);
    }
  }
}

template <typename T, int w>
void up_flat(const Upfirdn2dArgs& a, int64_t begin, int64_t end) {
  const Weights f = weights_of(a);
  const int size = int(a.h) * w;
  float scratch[w + kFlatLimit + w] = {};
  float* h = scratch + w;  // the plane in float, between two rows of zeros
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* x = static_cast<const T*>(a.x) + plane * size;
    T* out = static_cast<T*>(a.out) + plane * size * 4;
    for (int i = 0; i < size; i += kWidth) store(h + i, load(x + i));
    for (int i = 0; i < size; i += kWidth) {
      Vec above = load(h + i - w), here = load(h + i), below = load(h + i + w);
      Vec top = f.f[0] * above + f.f[2] * here, bottom = f.f[1] * here + f.f[3] * below;
      Vec top_left = f.f[0] * from_left<w>(top) + f.f[2] * top;
      Vec top_right = f.f[1] * top + f.f[3] * from_right<w>(top);
      Vec bottom_left = f.f[0] * from_left<w>(bottom) + f.f[2] * bottom;
      Vec bottom_right = f.f[1] * bottom + f.f[3] * from_right<w>(bottom);
      T* y = out + 4 * i;
      top = interleave_low(top_left, top_right);
      bottom = interleave_low(bottom_left, bottom_right);
      store(y, interleave_low<2 * w>(top, bottom));
      store(y + kWidth, interleave_high<2 * w>(top, bottom));
      top = interleave_high(top_left, top_right);
      bottom = interleave_high(bottom_left, bottom_right);
      store(y + 2 * kWidth, interleave_low<2 * w>(top, bottom));
      store(y + 3 * kWidth, interleave_high<2 * w>(top, bottom));
    }
  }
}

template <typename T, bool up, int w>
bool try_flat(const Upfirdn2dArgs& a) {
  if constexpr (w < kWidth) {
    const int64_t pad = up ? 2 : 1, size = a.h * w;
    const bool exact =
        up ? a.out_h == 2 * a.h && a.out_w == 2 * a.w : a.h == 2 * a.out_h && a.w == 2 * a.out_w;
    if (!exact || (up ? a.w : a.out_w) != w || a.pad_x != pad || a.pad_y != pad ||
        size % kWidth != 0 || size > kFlatLimit) {
      return false;
    }
    parallel_for(a.n * a.c, kGrain / (a.out_h * a.out_w) + 1, [&](int64_t begin, int64_t end) {
      up ? up_flat<T, w>(a, begin, end) : down_flat<T, w>(a, begin, end);
    });
    return true;
  }
  return false;
}

// Whether the kernels above serve; runs them if so.
template <typename T>
bool by_two(const Upfirdn2dArgs& a) {
  const bool up = a.up == 2 && a.down == 1 && a.pad_x % 2 == 0 && a.pad_y % 2 == 0;
  const bool down = a.up == 1 && a.down == 2;
  if (!a.separable || a.taps_w != kTaps || !(up || down)) return false;
  const int64_t tasks = up ? (a.out_h + 1) / 2 : a.out_h, per_task = up ? 2 * a.out_w : a.out_w;
  if (a.channels_last) {
    parallel_for(a.n * tasks, kGrain / (per_task * a.c) + 1, [&](int64_t begin, int64_t end) {
      up ? by_two_channels_last<T, true>(a, begin, end)
         : by_two_channels_last<T, false>(a, begin, end);
    });
    return true;
  }
  if (up ? try_flat<T, true, 8>(a) || try_flat<T, true, 4>(a) || try_flat<T, true, 2>(a)
         : try_flat<T, false, 8>(a) || try_flat<T, false, 4>(a) || try_flat<T, false, 2>(a)) {
    return true;
  }
  parallel_for(a.n * a.c * tasks, kGrain / per_task + 1, [&](int64_t begin, int64_t end) {
    up ? up_rows<T>(a, begin, end) : down_rows<T>(a, begin, end);
  });
  return true;
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
        Vec last = sum(Vec{}, [&](const T* p) { return load_until<T, true>(p + c, limit); });
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
    if (!by_two<T>(a)) any<T>(a);
  });
}

}  // namespace lddgan::LDDGAN_ISA
