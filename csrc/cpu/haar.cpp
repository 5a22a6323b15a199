#include "lddgan/haar.h"

#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr int64_t kGrain = 16384;  // elements a thread; below, waking a thread costs more

struct Quad {
  Vec v[4];
};

// The 2x2 block (a b; c d) of each lane to its (LL, LH, HL, HH) and, the matrix being symmetric and
// orthogonal, back. `factor` is half the scale.
LDDGAN_INLINE Quad butterfly(Quad q, float factor) {
  Vec top = (q.v[0] + q.v[1]) * factor, top_step = (q.v[0] - q.v[1]) * factor;
  Vec bottom = (q.v[2] + q.v[3]) * factor, bottom_step = (q.v[2] - q.v[3]) * factor;
  return {{top + bottom, top_step + bottom_step, top - bottom, top_step - bottom_step}};
}

// kTail: `count` < kWidth elements. kStream: stores past the caches.
enum class Access { kWhole, kTail, kStream };

template <Access access, typename T>
LDDGAN_INLINE Vec get(const T* p, int count) {
  if constexpr (access != Access::kTail) return load(p);
  return count >= kWidth ? load(p) : count > 0 ? load_tail(p, count) : Vec{};
}
template <Access access, typename T>
LDDGAN_INLINE void put(T* p, Vec v, int count) {
  if (access != Access::kTail || count >= kWidth) {
    store_either<access == Access::kStream>(p, v);
  } else if (count > 0) {
    store_tail(p, v, count);
  }
}

// `count` columns of one row pair of a contiguous image; the sub-bands are `band` apart.
template <Access access, typename T>
LDDGAN_INLINE void dwt_columns(const T* top, const T* bottom, T* out, int64_t band, float factor,
                               int count) {
  Vec t0 = get<access>(top, 2 * count), t1 = get<access>(top + kWidth, 2 * count - kWidth);
  Vec b0 = get<access>(bottom, 2 * count), b1 = get<access>(bottom + kWidth, 2 * count - kWidth);
  Quad bands = butterfly({{even(t0, t1), odd(t0, t1), even(b0, b1), odd(b0, b1)}}, factor);
  for (int s = 0; s < 4; ++s) put<access>(out + s * band, bands.v[s], count);
}

template <Access access, typename T>
LDDGAN_INLINE void idwt_columns(const T* in, T* top, T* bottom, int64_t band, float factor,
                                int count) {
  Quad q;
  for (int s = 0; s < 4; ++s) q.v[s] = get<access>(in + s * band, count);
  q = butterfly(q, factor);
  put<access>(top, interleave_low(q.v[0], q.v[1]), 2 * count);
  put<access>(top + kWidth, interleave_high(q.v[0], q.v[1]), 2 * count - kWidth);
  put<access>(bottom, interleave_low(q.v[2], q.v[3]), 2 * count);
  put<access>(bottom + kWidth, interleave_high(q.v[2], q.v[3]), 2 * count - kWidth);
}

// Rows [begin, end) of all N * C sub-band planes.
template <typename T, bool inverse, Access access>
void rows(const HaarArgs& a, int64_t begin, int64_t end) {
  const float factor = 0.5f * a.scale;
  const int64_t band = a.c * a.h * a.w;
  using Image = std::conditional_t<inverse, T*, const T*>;
  using Bands = std::conditional_t<inverse, const T*, T*>;
  Image image = static_cast<Image>(inverse ? a.out : const_cast<void*>(a.in));
  Bands bands = static_cast<Bands>(inverse ? const_cast<void*>(a.in) : a.out);
  for (int64_t row = begin; row < end; ++row) {
    Image top = image + row * 4 * a.w, bottom = top + 2 * a.w;
    // Row r of sample n's first sub-band; three more sub-bands lie between it and sample n + 1.
    Bands y = bands + (row / (a.c * a.h) * 3 * a.c * a.h + row) * a.w;
    auto columns = [&](auto how, int64_t x, int count) {
      if constexpr (inverse) {
        idwt_columns<how.value>(y + x, top + 2 * x, bottom + 2 * x, band, factor, count);
      } else {
        dwt_columns<how.value>(top + 2 * x, bottom + 2 * x, y + x, band, factor, count);
      }
    };
    int64_t x = 0;
    for (; x + kWidth <= a.w; x += kWidth) {
      columns(std::integral_constant<Access, access>(), x, kWidth);
    }
    if (x < a.w) columns(std::integral_constant<Access, Access::kTail>(), x, int(a.w - x));
  }
}

// Sub-bands of width `w` < kWidth, a divisor of it: whole samples as flat arrays, so that vectors
// span rows. Vectors [begin, end) of all samples.
template <typename T, bool inverse, int w>
void flat(const HaarArgs& a, int64_t begin, int64_t end) {
  const float factor = 0.5f * a.scale;
  const int64_t band = a.c * a.h * w, per_sample = band / kWidth;
  for (int64_t i = begin; i < end; ++i) {
    int64_t sample = i / per_sample, offset = (i - sample * per_sample) * kWidth;
    int64_t image = 4 * (sample * band + offset), first = 4 * sample * band + offset;
    Quad q;
    if constexpr (inverse) {
      const T* in = static_cast<const T*>(a.in) + first;
      T* out = static_cast<T*>(a.out) + image;
      for (int s = 0; s < 4; ++s) q.v[s] = load(in + s * band);
      q = butterfly(q, factor);
      Vec top = interleave_low(q.v[0], q.v[1]), bottom = interleave_low(q.v[2], q.v[3]);
      store(out, interleave_low<2 * w>(top, bottom));
      store(out + kWidth, interleave_high<2 * w>(top, bottom));
      top = interleave_high(q.v[0], q.v[1]), bottom = interleave_high(q.v[2], q.v[3]);
      store(out + 2 * kWidth, interleave_low<2 * w>(top, bottom));
      store(out + 3 * kWidth, interleave_high<2 * w>(top, bottom));
    } else {
      const T* in = static_cast<const T*>(a.in) + image;
      T* out = static_cast<T*>(a.out) + first;
      Vec v[4];
      for (int s = 0; s < 4; ++s) v[s] = load(in + s * kWidth);
      Vec left0 = even(v[0], v[1]), left1 = even(v[2], v[3]);
      Vec right0 = odd(v[0], v[1]), right1 = odd(v[2], v[3]);
      q = butterfly({{even<w>(left0, left1), even<w>(right0, right1), odd<w>(left0, left1),
                      odd<w>(right0, right1)}},
                    factor);
      for (int s = 0; s < 4; ++s) store(out + s * band, q.v[s]);
    }
  }
}

// Sub-band rows [begin, end) of all N * H, channels_last: vectors over channels.
template <typename T, bool inverse>
void pixels(const HaarArgs& a, int64_t begin, int64_t end) {
  const float factor = 0.5f * a.scale;
  const int64_t c = a.c, row_length = 2 * a.w * c;
  // Strides of the four values of a 2x2 block and of its four sub-bands.
  const int64_t image[4] = {0, c, row_length, row_length + c}, bands[4] = {0, c, 2 * c, 3 * c};
  const int64_t* from = inverse ? bands : image;
  const int64_t* to = inverse ? image : bands;
  const T* in = static_cast<const T*>(a.in);
  T* out = static_cast<T*>(a.out);
  const T* limit = in + a.n * a.h * 2 * row_length;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t x = 0; x < a.w; ++x) {
      int64_t at_image = row * 2 * row_length + 2 * x * c, at_bands = (row * a.w + x) * 4 * c;
      const T* p = in + (inverse ? at_bands : at_image);
      T* y = out + (inverse ? at_image : at_bands);
      int64_t i = 0;
      Quad q;
      for (; i + kWidth <= c; i += kWidth) {
        for (int s = 0; s < 4; ++s) q.v[s] = load(p + from[s] + i);
        q = butterfly(q, factor);
        for (int s = 0; s < 4; ++s) store(y + to[s] + i, q.v[s]);
      }
      if (i == c) continue;
      if (c > kWidth) i = c - kWidth;  // the last vector overlaps the one before
      for (int s = 0; s < 4; ++s) q.v[s] = load_until(p + from[s] + i, limit);
      q = butterfly(q, factor);
      for (int s = 0; s < 4; ++s) {
        // What it writes of the next channels and pixels of the row, these overwrite.
        const int64_t row_end =
            inverse ? (2 * row + s / 2 + 1) * row_length : (row + 1) * 2 * row_length;
        store_until(y + to[s] + i, q.v[s], out + row_end);
      }
    }
  }
}

template <typename T, bool inverse, int w>
bool try_flat(const HaarArgs& a) {
  if constexpr (w < kWidth) {
    if (a.w != w || a.c * a.h * w % kWidth != 0) return false;
    parallel_for(a.n * a.c * a.h * w / kWidth, kGrain / 4 / kWidth,
                 [&](int64_t begin, int64_t end) { flat<T, inverse, w>(a, begin, end); });
    return true;
  }
  return false;
}

template <bool inverse>
void run(const HaarArgs& a) {
  if (a.n * a.c * a.h * a.w == 0) return;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (a.channels_last) {
      parallel_for(a.n * a.h, kGrain / (4 * a.w * a.c) + 1,
                   [&](int64_t begin, int64_t end) { pixels<T, inverse>(a, begin, end); });
    } else if (!try_flat<T, inverse, 8>(a) && !try_flat<T, inverse, 4>(a) &&
               !try_flat<T, inverse, 2>(a)) {
      const int64_t bytes = 2 * a.n * a.c * a.h * a.w * 4 * int64_t(sizeof(T));
      const bool stream = a.w % kWidth == 0 && worth_streaming(bytes);
      parallel_for(a.n * a.c * a.h, kGrain / (4 * a.w) + 1, [&](int64_t begin, int64_t end) {
        if (stream) {
          rows<T, inverse, Access::kStream>(a, begin, end);
          stream_fence();
        } else {
          rows<T, inverse, Access::kWhole>(a, begin, end);
        }
      });
    }
  });
}

}  // namespace

void haar_dwt2d(const HaarArgs& a) { run<false>(a); }
void haar_idwt2d(const HaarArgs& a) { run<true>(a); }

}  // namespace lddgan::LDDGAN_ISA
