#include "lddgan/haar.h"

#include "lddgan/parallel.h"
#include "lddgan/vec.h"

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

// How a row of an image or sub-band is reached in a vector's worth of lanes.
template <typename T, bool full>
LDDGAN_INLINE Vec get(const T* p, int count) {
  if constexpr (full) return load(p);
  return load_tail(p, count);
}
template <typename T, bool full>
LDDGAN_INLINE void put(T* p, Vec v, int count) {
  if constexpr (full) {
    store(p, v);
  } else {
    store_tail(p, v, count);
  }
}
// 2 * count elements, of two vectors.
template <typename T, bool full>
LDDGAN_INLINE Vec get_second(const T* p, int count) {
  if constexpr (full) return load(p + kWidth);
  return count > kWidth / 2 ? load_tail(p + kWidth, 2 * count - kWidth) : Vec{};
}
template <typename T, bool full>
LDDGAN_INLINE void put_both(T* p, Vec low, Vec high, int count) {
  if constexpr (full) {
    store(p, low);
    store(p + kWidth, high);
  } else if (2 * count <= kWidth) {
    store_tail(p, low, 2 * count);
  } else {
    store(p, low);
    store_tail(p + kWidth, high, 2 * count - kWidth);
  }
}

// `count` columns of one row pair of a contiguous image; the sub-bands are `band` apart.
template <typename T, bool full>
LDDGAN_INLINE void dwt_columns(const T* top, const T* bottom, T* out, int64_t band, float factor,
                               int count) {
  int first = 2 * count < kWidth ? 2 * count : kWidth;
  Vec t0 = get<T, full>(top, first), t1 = get_second<T, full>(top, count);
  Vec b0 = get<T, full>(bottom, first), b1 = get_second<T, full>(bottom, count);
  Quad bands = butterfly({{even(t0, t1), odd(t0, t1), even(b0, b1), odd(b0, b1)}}, factor);
  for (int s = 0; s < 4; ++s) put<T, full>(out + s * band, bands.v[s], count);
}

template <typename T, bool full>
LDDGAN_INLINE void idwt_columns(const T* in, T* top, T* bottom, int64_t band, float factor,
                                int count) {
  Quad bands;
  for (int s = 0; s < 4; ++s) bands.v[s] = get<T, full>(in + s * band, count);
  Quad q = butterfly(bands, factor);
  put_both<T, full>(top, interleave_low(q.v[0], q.v[1]), interleave_high(q.v[0], q.v[1]), count);
  put_both<T, full>(bottom, interleave_low(q.v[2], q.v[3]), interleave_high(q.v[2], q.v[3]), count);
}

// Rows [begin, end) of all N * C sub-band planes.
template <typename T, bool inverse>
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
    auto columns = [&](auto full, int64_t x, int count) {
      if constexpr (inverse) {
        idwt_columns<T, full.value>(y + x, top + 2 * x, bottom + 2 * x, band, factor, count);
      } else {
        dwt_columns<T, full.value>(top + 2 * x, bottom + 2 * x, y + x, band, factor, count);
      }
    };
    int64_t x = 0;
    for (; x + kWidth <= a.w; x += kWidth) columns(std::true_type(), x, kWidth);
    if (x < a.w) columns(std::false_type(), x, int(a.w - x));
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
      if (i < c) {
        int rest = int(c - i);
        for (int s = 0; s < 4; ++s) q.v[s] = load_tail(p + from[s] + i, rest);
        q = butterfly(q, factor);
        for (int s = 0; s < 4; ++s) store_tail(y + to[s] + i, q.v[s], rest);
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
      parallel_for(a.n * a.c * a.h, kGrain / (4 * a.w) + 1,
                   [&](int64_t begin, int64_t end) { rows<T, inverse>(a, begin, end); });
    }
  });
}

}  // namespace

void haar_dwt2d(const HaarArgs& a) { run<false>(a); }
void haar_idwt2d(const HaarArgs& a) { run<true>(a); }

}  // namespace lddgan::LDDGAN_ISA
