// By two with four separable taps on contiguous planes: the CPU kernels of upfirdn2d for that.
#pragma once

#include "lddgan/upfirdn2d.h"
#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr int64_t kGrain = 8192;  // outputs a thread; below, waking a thread costs more
constexpr int kTaps = 4;
constexpr int kChunk = 256;  // outputs (down) or output pairs (up) of a row in scratch at a time

// Weight j multiplies the stuffed signal at out * down - pad + j. Down: out[o] reads
// x[2 o - pad ... + 3]. Up, with an even pad and first = k - pad / 2:
// out[2 k] = f0 x[first] + f2 x[first + 1], out[2 k + 1] = f1 x[first + 1] + f3 x[first + 2].
struct Weights {
  float f[kTaps];
};

inline Weights weights_of(const Upfirdn2dArgs& a) {
  Weights w;
  for (int j = 0; j < kTaps; ++j) w.f[j] = a.taps[a.reversed ? j : kTaps - 1 - j];
  return w;
}

// Streamed are outputs that would crowd out what they are made from; a smaller one, as going down
// often is, does better in the cache for its reader.
inline bool should_stream(int64_t out_bytes) { return out_bytes >= int64_t(32) << 20; }

inline bool should_stream(const Upfirdn2dArgs& a) {
  return should_stream(a.n * a.c * a.out_h * a.out_w * (a.dtype == Dtype::kFloat32 ? 4 : 2));
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

LDDGAN_INLINE Vec weigh_down(const Weights& w, Vec v0, Vec v1, Vec v2, Vec v3) {
  return w.f[0] * v0 + w.f[1] * v1 + w.f[2] * v2 + w.f[3] * v3;
}
LDDGAN_INLINE Vec weigh_even(const Weights& w, Vec v0, Vec v1) { return w.f[0] * v0 + w.f[2] * v1; }
LDDGAN_INLINE Vec weigh_odd(const Weights& w, Vec v1, Vec v2) { return w.f[1] * v1 + w.f[3] * v2; }

// The vertical sum over the rows that exist, at each row's p + offset.
template <typename T, typename Load>
LDDGAN_INLINE Vec down_column(const T* const* rows, const Weights& w, const Load& load_at) {
  Vec sum = Vec{};
  for (int i = 0; i < kTaps; ++i) {
    if (rows[i] != nullptr) sum += w.f[i] * load_at(rows[i]);
  }
  return sum;
}

// The vertical sums of the even and the odd output row.
struct EvenOdd {
  Vec even, odd;
};
template <typename T, typename Load>
LDDGAN_INLINE EvenOdd up_column(const T* const* rows, const Weights& w, const Load& load_at) {
  Vec r[3];
  for (int i = 0; i < 3; ++i) r[i] = rows[i] != nullptr ? load_at(rows[i]) : Vec{};
  return {weigh_even(w, r[0], r[1]), weigh_odd(w, r[1], r[2])};
}

// --- Any size and pad: the vertical sums of a row chunk go through scratch.

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
        const int64_t at = first + j;
        store_some(scratch + j,
                   down_column(rows, w,
                               [&](const T* row) {
                                 return count == kWidth ? load(row + at)
                                                        : load_tail(row + at, count);
                               }),
                   count);
      });
      for (int64_t o = 0; o < length; o += kWidth) {
        const float* s = scratch + 2 * o;
        Vec v0 = load(s), v1 = load(s + kWidth), v2 = load(s + 2), v3 = load(s + 2 + kWidth);
        Vec sum = weigh_down(w, even(v0, v1), odd(v0, v1), even(v2, v3), odd(v2, v3));
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
        const int64_t at = first + j;
        EvenOdd sums = up_column(rows, w, [&](const T* row) {
          return count == kWidth ? load(row + at) : load_tail(row + at, count);
        });
        store_some(scratch[0] + j, sums.even, count);
        store_some(scratch[1] + j, sums.odd, count);
      });
      for (int s = 0; s < out_rows; ++s) {
        for (int64_t k = 0; k < length; k += kWidth) {
          const float* p = scratch[s] + k;
          Vec v0 = load(p), v1 = load(p + 1), v2 = load(p + 2);
          Vec left = weigh_even(w, v0, v1), right = weigh_odd(w, v1, v2);
          const int64_t o = 2 * (k0 + k), rest = a.out_w - o;
          store_some(out + s * a.out_w + o, interleave_low(left, right), rest);
          store_some(out + s * a.out_w + o + kWidth, interleave_high(left, right), rest - kWidth);
        }
      }
    }
  }
}

// --- With the pads that make H -> H / 2 or 2 H exactly and rows of whole vectors: in registers.

template <typename T, bool stream>
void down_wide(const Upfirdn2dArgs& a, int64_t begin, int64_t end) {
  const Weights w = weights_of(a);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / a.out_h, y = task % a.out_h;
    const T* rows[kTaps];
    find_rows<T, kTaps>(static_cast<const T*>(a.x) + plane * a.h * a.w, 2 * y - 1, a.h, a.w, rows);
    T* out = static_cast<T*>(a.out) + task * a.out_w;
    // Vertical sums of columns 2 o (left) and 2 o + 1 (right) of kWidth outputs o.
    auto sums = [&](int64_t o, Vec& left, Vec& right) {
      Vec v0 = down_column(rows, w, [&](const T* row) { return load(row + 2 * o); });
      Vec v1 = down_column(rows, w, [&](const T* row) { return load(row + 2 * o + kWidth); });
      left = even(v0, v1);
      right = odd(v0, v1);
    };
    Vec left, right, before = Vec{};
    sums(0, left, right);
    for (int64_t o = 0; o < a.out_w; o += kWidth) {
      Vec next_left = Vec{}, next_right = Vec{};
      if (o + kWidth < a.out_w) sums(o + kWidth, next_left, next_right);
      store_either<stream>(out + o, weigh_down(w, lanes_up<1>(before, right), left, right,
                                               lanes_down<1>(left, next_left)));
      before = right;
      left = next_left;
      right = next_right;
    }
  }
}

template <typename T, bool stream>
void up_wide(const Upfirdn2dArgs& a, int64_t begin, int64_t end) {
  const Weights w = weights_of(a);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / a.h, y = task % a.h;
    const T* rows[3];
    find_rows<T, 3>(static_cast<const T*>(a.x) + plane * a.h * a.w, y - 1, a.h, a.w, rows);
    T* out = static_cast<T*>(a.out) + task * 4 * a.w;
    auto sums = [&](int64_t x) {
      return up_column(rows, w, [&](const T* row) { return load(row + x); });
    };
    EvenOdd before = {Vec{}, Vec{}}, here = sums(0);
    for (int64_t x = 0; x < a.w; x += kWidth) {
      EvenOdd after = {Vec{}, Vec{}};
      if (x + kWidth < a.w) after = sums(x + kWidth);
      auto row = [&](T* p, Vec v0, Vec v1, Vec v2) {
        Vec left = weigh_even(w, lanes_up<1>(v0, v1), v1);
        Vec right = weigh_odd(w, v1, lanes_down<1>(v1, v2));
        store_either<stream>(p, interleave_low(left, right));
        store_either<stream>(p + kWidth, interleave_high(left, right));
      };
      row(out + 2 * x, before.even, here.even, after.even);
      row(out + 2 * a.w + 2 * x, before.odd, here.odd, after.odd);
      before = here;
      here = after;
    }
  }
}

// --- The same on rows narrower than a vector: planes as flat arrays, so that vectors span rows.
// `w` is the narrower width. Planes [begin, end).

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
  const int64_t size = a.out_h * w;
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* x = static_cast<const T*>(a.x) + plane * size * 4;
    T* out = static_cast<T*>(a.out) + plane * size;
    // kWidth elements of the plane filtered along W, from 2 * kWidth of the plane.
    auto filtered = [&](const T* p) {
      Vec v0 = load(p), v1 = load(p + kWidth);
      Vec left = even(v0, v1), right = odd(v0, v1);
      return weigh_down(f, from_left<w>(right), left, right, from_right<w>(left));
    };
    // Its even and odd rows, for kWidth outputs from o on.
    auto rows = [&](int64_t o, Vec& top, Vec& bottom) {
      Vec v0 = filtered(x + 4 * o), v1 = filtered(x + 4 * o + 2 * kWidth);
      top = even<w>(v0, v1);
      bottom = odd<w>(v0, v1);
    };
    Vec top, bottom, before = Vec{};
    rows(0, top, bottom);
    for (int64_t o = 0; o < size; o += kWidth) {
      Vec next_top = Vec{}, next_bottom = Vec{};
      if (o + kWidth < size) rows(o + kWidth, next_top, next_bottom);
      store(out + o,
            weigh_down(f, lanes_up<w>(before, bottom), top, bottom, lanes_down<w>(top, next_top)));
      before = bottom;
      top = next_top;
      bottom = next_bottom;
    }
  }
}

template <typename T, int w>
void up_flat(const Upfirdn2dArgs& a, int64_t begin, int64_t end) {
  const Weights f = weights_of(a);
  const int64_t size = a.h * w;
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* x = static_cast<const T*>(a.x) + plane * size;
    T* out = static_cast<T*>(a.out) + plane * size * 4;
    Vec before = Vec{}, here = load(x);
    for (int64_t i = 0; i < size; i += kWidth) {
      Vec after = i + kWidth < size ? load(x + i + kWidth) : Vec{};
      Vec top = weigh_even(f, lanes_up<w>(before, here), here);
      Vec bottom = weigh_odd(f, here, lanes_down<w>(here, after));
      before = here;
      here = after;
      Vec top_left = weigh_even(f, from_left<w>(top), top);
      Vec top_right = weigh_odd(f, top, from_right<w>(top));
      Vec bottom_left = weigh_even(f, from_left<w>(bottom), bottom);
      Vec bottom_right = weigh_odd(f, bottom, from_right<w>(bottom));
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
    const int64_t rows = up ? a.h : a.out_h;  // of the smaller plane
    if ((up ? a.w : a.out_w) != w || rows * w % kWidth != 0) return false;
    parallel_for(a.n * a.c, kGrain / (a.out_h * a.out_w) + 1, [&](int64_t begin, int64_t end) {
      up ? up_flat<T, w>(a, begin, end) : down_flat<T, w>(a, begin, end);
    });
    return true;
  }
  return false;
}

template <typename T, bool up>
void by_two_planes(const Upfirdn2dArgs& a) {
  const int64_t pad = up ? 2 : 1;
  const bool exact =
      a.pad_x == pad && a.pad_y == pad &&
      (up ? a.out_h == 2 * a.h && a.out_w == 2 * a.w : a.h == 2 * a.out_h && a.w == 2 * a.out_w);
  if (exact && (try_flat<T, up, 8>(a) || try_flat<T, up, 4>(a) || try_flat<T, up, 2>(a))) return;
  const bool wide = exact && (up ? a.w : a.out_w) % kWidth == 0;
  const bool stream = should_stream(a);
  const int64_t tasks = a.n * a.c * (up ? (a.out_h + 1) / 2 : a.out_h);
  parallel_for(tasks, kGrain / (up ? 2 * a.out_w : a.out_w) + 1, [&](int64_t begin, int64_t end) {
    if (wide && stream) {
      up ? up_wide<T, true>(a, begin, end) : down_wide<T, true>(a, begin, end);
      stream_fence();
    } else if (wide) {
      up ? up_wide<T, false>(a, begin, end) : down_wide<T, false>(a, begin, end);
    } else {
      up ? up_rows<T>(a, begin, end) : down_rows<T>(a, begin, end);
    }
  });
}

}  // namespace

}  // namespace lddgan::LDDGAN_ISA
