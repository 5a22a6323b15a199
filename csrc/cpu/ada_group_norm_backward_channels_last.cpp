// The backward pass in channels_last; formulas in ada_group_norm_backward.cpp. Pixels are taken in
// tiles, and in a tile some vectors of channels at a time, whose parameters and sums stay in
// registers. Between the passes v is kept where a sample is small; else it is taken again from x
// and grad_out, which costs less than writing and reading it.
#include "ada_group_norm_common.h"

namespace lddgan::LDDGAN_ISA {
namespace {

// Elements of a sample that stay in a core's cache with what is computed of them.
constexpr int64_t kSmall = 1 << 17;

// Pixels that are added one after the other; then such runs are, and then tiles.
constexpr int64_t kRun = 8;

// In channels_last pixels are taken in tiles of kPart, each with sums of its own: results do not
// depend on how threads share them.
inline int64_t tile_count(const AdaGroupNormArgs& a) { return (a.pixels + kPart - 1) / kPart; }

// Runs a pass over an item's tiles, f(begin, end): on this thread, or shared by all.
struct Tiles {
  int64_t count;
  bool shared;

  template <typename F>
  void run(const F& f) const {
    shared ? parallel_for(count, 1, f) : f(0, count);
  }
};

// Calls f(block, tiles, begin, end) for items [begin, end) of `block` channels of a sample. A
// thread takes items whole; but the tiles of a large sample are shared by all, where samples are
// too few.
template <typename F>
void for_items(const AdaGroupNormArgs& a, int64_t element_bytes, const F& f) {
  const int64_t channels = a.channels1 + a.channels2;
  if (a.samples < num_threads() && channels * a.pixels > kSmall) {
    return f(channels, Tiles{tile_count(a), true}, 0, a.samples);
  }
  const int64_t block = block_channels(a, element_bytes);
  parallel_for(
      a.samples * ((channels + block - 1) / block), grain(block * a.pixels),
      [&](int64_t begin, int64_t end) { f(block, Tiles{tile_count(a), false}, begin, end); });
}

// The sum of `count` rows of `width` floats, whole vectors.
inline void add_rows(const float* rows, int64_t count, int64_t width, float* to) {
  for (int64_t i = 0; i < width; i += kWidth) {
    Vec total = load(rows + i), lost = {};
    for (int64_t r = 1; r < count; ++r) add_part(total, lost, load(rows + r * width + i));
    store(to + i, total + lost);
  }
}

// In channels_last: a block of channels of one sample.
struct Item {
  int64_t n, first, width;  // its first channel; channels, whole vectors
  Segment parts[2];
  int num_parts;
  float *scale, *shift;
  float *q, *gain;  // mean - bias, scale * rstd
  float *grad_scale, *grad_shift, *grad_bias;
  float *mean1, *mean2;     // rstd k1, rstd^3 k2
  float *sums_v, *sums_vd;  // a row a tile
  float* kept;              // v of all pixels, or null: taken again from x and grad_out
};

// Whether v is kept in grad_x itself.
template <typename T, bool kStream>
constexpr bool kInPlace = sizeof(T) == 4 && !kStream;

// Where v is kept of channel i of a segment in pixel `row`.
template <typename T, bool kKeep, bool kStream>
LDDGAN_INLINE float* kept_at(const AdaGroupNormBackwardArgs& b, const Item& item,
                             const Segment& part, int64_t row, int64_t i) {
  if constexpr (!kKeep) return nullptr;
  if constexpr (kInPlace<T, kStream>) {
    void* grad_x = part.second ? b.grad_x2 : b.grad_x;
    return static_cast<float*>(grad_x) + part.offset + row * part.stride + i;
  }
  return item.kept + row * item.width + part.channel - item.first + i;
}

// d and v of some vectors of one pixel.
template <typename T, bool kSilu, int count, typename Lanes>
LDDGAN_INLINE void pixel(const T* x, const T* grad, const Vec (&q)[count], const Vec (&gain)[count],
                         const Vec (&shift)[count], Lanes lanes, Vec (&d)[count], Vec (&v)[count]) {
  Vec u[count];
  for (int k = 0; k < count; ++k) {
    d[k] = load(x + k * kWidth, lanes) - q[k];
    u[k] = d[k] * gain[k] + shift[k];
    v[k] = load(grad + k * kWidth, lanes);
  }
  before_activation<T, kSilu>(u, v);
}

// A tile's sums of v and v d. Meanwhile the next tile is fetched, of a large sample in the order of
// memory.
template <typename T, bool kSilu, bool kStream, bool kKeep>
void first_pass(const AdaGroupNormBackwardArgs& b, const Item& item, int64_t tile) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2;
  const int64_t row = tile * kPart, count = a.pixels - row < kPart ? a.pixels - row : kPart;
  for (int s = 0; s < item.num_parts; ++s) {
    const Segment& part = item.parts[s];
    for_vectors<kBackwardBlock>(part.count, [&](int64_t i,
                                                auto lanes) __attribute__((always_inline)) {
      constexpr int kCount = kVectorsOf<decltype(lanes)>;
      const int64_t j = part.channel - item.first + i, stride = part.stride;
      const T* x = static_cast<const T*>(part.second ? a.x2 : a.x) + part.offset + row * stride + i;
      const T* grad = static_cast<const T*>(b.grad_out) + (item.n * a.pixels + row) * channels +
                      part.channel + i;
      float* kept = kept_at<T, kKeep, kStream>(b, item, part, row, i);
      const int64_t kept_stride = kInPlace<T, kStream> ? stride : item.width;
      const T* next_x = x + kPart * stride + (kKeep ? 0 : i * count - i);
      const T* next_grad = grad + kPart * channels + (kKeep ? 0 : i * count - i);
      Vec q[kCount], gain[kCount], shift[kCount], sum_v[kCount] = {}, sum_vd[kCount] = {};
      for (int k = 0; k < kCount; ++k) {
        q[k] = load(item.q + j + k * kWidth);
        gain[k] = load(item.gain + j + k * kWidth);
        shift[k] = load(item.shift + j + k * kWidth);
      }
      for (int64_t r = 0; r < count;) {
        Vec run_v[kCount] = {}, run_vd[kCount] = {};
        for (const int64_t end = r + kRun < count ? r + kRun : count; r < end; ++r) {
          prefetch<decltype(lanes)>(next_x);
          prefetch<decltype(lanes)>(next_grad);
          next_x += kKeep ? stride : kCount * kWidth;
          next_grad += kKeep ? channels : kCount * kWidth;
          Vec d[kCount], v[kCount];
          pixel<T, kSilu>(x, grad, q, gain, shift, lanes, d, v);
          for (int k = 0; k < kCount; ++k) {
            if (kKeep) store(kept + k * kWidth, v[k], lanes);
            run_v[k] += v[k];
            run_vd[k] += v[k] * d[k];
          }
          x += stride, grad += channels, kept += kept_stride;
        }
        for (int k = 0; k < kCount; ++k) sum_v[k] += run_v[k], sum_vd[k] += run_vd[k];
      }
      for (int k = 0; k < kCount; ++k) {
        store(item.sums_v + tile * item.width + j + k * kWidth, sum_v[k], lanes);
        store(item.sums_vd + tile * item.width + j + k * kWidth, sum_vd[k], lanes);
      }
    });
  }
}

// A tile's grad_x and its sums.
template <typename T, bool kSilu, bool kBias, bool kStream, bool kKeep>
void second_pass(const AdaGroupNormBackwardArgs& b, const Item& item, int64_t tile) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2;
  const int64_t row = tile * kPart, count = a.pixels - row < kPart ? a.pixels - row : kPart;
  for (int s = 0; s < item.num_parts; ++s) {
    const Segment& part = item.parts[s];
    for_vectors<kBackwardBlock>(part.count, [&](int64_t i,
                                                auto lanes) __attribute__((always_inline)) {
      constexpr int kCount = kVectorsOf<decltype(lanes)>;
      const int64_t j = part.channel - item.first + i, stride = part.stride;
      const int64_t offset = part.offset + row * stride + i;
      const T* x = static_cast<const T*>(part.second ? a.x2 : a.x) + offset;
      T* grad_x = static_cast<T*>(part.second ? b.grad_x2 : b.grad_x) + offset;
      const T* grad = static_cast<const T*>(b.grad_out) + (item.n * a.pixels + row) * channels +
                      part.channel + i;
      const float* kept = kept_at<T, kKeep, kStream>(b, item, part, row, i);
      const int64_t kept_stride = kInPlace<T, kStream> ? stride : item.width;
      const T* next_x = x - kPart * stride + (i * count - i);
      const T* next_grad = grad - kPart * channels + (i * count - i);
      Vec q[kCount], gain[kCount], shift[kCount], mean1[kCount], mean2[kCount], sum_x[kCount] = {};
      for (int k = 0; k < kCount; ++k) {
        q[k] = load(item.q + j + k * kWidth);
        gain[k] = load(item.gain + j + k * kWidth);
        shift[k] = load(item.shift + j + k * kWidth);
        mean1[k] = load(item.mean1 + j + k * kWidth);
        mean2[k] = load(item.mean2 + j + k * kWidth);
      }
      for (int64_t r = 0; r < count;) {
        Vec run_x[kCount] = {};
        for (const int64_t end = r + kRun < count ? r + kRun : count; r < end; ++r) {
          Vec d[kCount], v[kCount];
          if constexpr (kKeep) {
            for (int k = 0; k < kCount; ++k) {
              d[k] = load(x + k * kWidth, lanes) - q[k];
              v[k] = load(kept + k * kWidth, lanes);
            }
          } else {
            prefetch<decltype(lanes)>(next_x + r * kCount * kWidth);
            prefetch<decltype(lanes)>(next_grad + r * kCount * kWidth);
            pixel<T, kSilu>(x, grad, q, gain, shift, lanes, d, v);
          }
          for (int k = 0; k < kCount; ++k) {
            const Vec value = v[k] * gain[k] - (mean2[k] * d[k] + mean1[k]);
            if constexpr (kStream) {
              store_stream(grad_x + k * kWidth, value);
            } else {
              store(grad_x + k * kWidth, value, lanes);
            }
            if (kBias) run_x[k] += value;
          }
          x += stride, grad += channels, grad_x += stride, kept += kept_stride;
        }
        for (int k = 0; kBias && k < kCount; ++k) sum_x[k] += run_x[k];
      }
      for (int k = 0; kBias && k < kCount; ++k) {
        store(item.sums_v + tile * item.width + j + k * kWidth, sum_x[k], lanes);
      }
    });
  }
  if (kStream) stream_fence();
}

// The passes in the code that suits the call, and what is made of them is compiled once.
struct Passes {
  void (*first)(const AdaGroupNormBackwardArgs&, const Item&, int64_t tile);
  void (*second)(const AdaGroupNormBackwardArgs&, const Item&, int64_t tile);
  bool keep_beside;  // v, in a place of its own
};

void backward_items(const AdaGroupNormBackwardArgs& b, const Passes& passes, int64_t block,
                    const Tiles& tiles, int64_t begin, int64_t end) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2, pixels = a.pixels;
  const int64_t size = channels / a.groups, blocks = (channels + block - 1) / block;
  Item item;
  item.width = (block + kWidth - 1) / kWidth * kWidth;
  Workspace workspace(9 * Workspace::padded(block) +
                      2 * Workspace::padded(tiles.count * item.width) +
                      (passes.keep_beside ? Workspace::padded(pixels * item.width) : 0));
  float** const rows[] = {&item.scale,     &item.shift,      &item.q,
                          &item.gain,      &item.grad_scale, &item.grad_shift,
                          &item.grad_bias, &item.mean1,      &item.mean2};
  for (float** row : rows) *row = workspace.take(block);
  item.sums_v = workspace.take(tiles.count * item.width);
  item.sums_vd = workspace.take(tiles.count * item.width);
  item.kept = passes.keep_beside ? workspace.take(pixels * item.width) : nullptr;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / blocks, first = index % blocks * block;
    const int64_t count = first + block < channels ? block : channels - first;
    item.n = n, item.first = first;
    item.num_parts = segments(a, n, first, first + count, item.parts);
    read_row(a.scale, n, first, first + count, item.scale);
    read_row(a.shift, n, first, first + count, item.shift);
    read_bias(a, n, first, first + count, item.q);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t group = n * a.groups + (first + i) / size;
      item.q[i] = a.mean[group] - item.q[i];
      item.gain[i] = item.scale[i] * a.rstd[group];
    }
    tiles.run([&](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) passes.first(b, item, t);
    });
    add_rows(item.sums_v, tiles.count, item.width, item.grad_shift);
    add_rows(item.sums_vd, tiles.count, item.width, item.grad_scale);
    const float elements = float(size * pixels);
    for (int64_t c = 0; c < count; c += size) {
      const float rstd = a.rstd[n * a.groups + (first + c) / size];
      float k1 = 0, k2 = 0;
      for (int64_t i = c; i < c + size; ++i) {
        item.grad_scale[i] *= rstd;
        k1 += item.scale[i] * item.grad_shift[i];
        k2 += item.scale[i] * item.grad_scale[i];
      }
      for (int64_t i = c; i < c + size; ++i) {
        item.mean1[i] = k1 / elements * rstd;
        item.mean2[i] = k2 / elements * rstd * rstd;
      }
    }
    tiles.run([&](int64_t from, int64_t to) {
      // Backwards: the last tiles of the first pass are still in the cache.
      for (int64_t t = to - 1; t >= from; --t) passes.second(b, item, t);
    });
    write_row(item.grad_scale, count, b.grad_scale, b.grad_scale_dtype, n * channels + first);
    write_row(item.grad_shift, count, b.grad_shift, b.grad_shift_dtype, n * channels + first);
    if (b.grad_bias != nullptr && first < a.channels1) {
      add_rows(item.sums_v, tiles.count, item.width, item.grad_bias);
      const int64_t biased = item.parts[0].count;
      write_row(item.grad_bias, biased, b.grad_bias, b.grad_bias_dtype, n * a.channels1 + first);
    }
  }
}

template <typename T, bool kSilu, bool kBias, bool kStream>
void backward(const AdaGroupNormBackwardArgs& b) {
  const AdaGroupNormArgs& a = b.forward;
  constexpr bool kBeside = !kInPlace<T, kStream>;
  // What a pass does not depend on is false in its name, so that there are fewer.
  const Passes keeping{first_pass < T,
                       kSilu,
                       kStream && sizeof(T) == 4,
                       true >
                       , second_pass<T, false, kBias, kStream, true>, kBeside};
  const Passes again{first_pass<T, kSilu, false, false>,
                     second_pass<T, kSilu, kBias, kStream, false>, false};
  const Passes& passes = (a.channels1 + a.channels2) * a.pixels <= kSmall ? keeping : again;
  for_items(a, sizeof(T), [&](int64_t block, const Tiles& tiles, int64_t begin, int64_t end) {
    backward_items(b, passes, block, tiles, begin, end);
  });
}

template <typename T, bool kSilu>
void backward(const AdaGroupNormBackwardArgs& b) {
  if (b.grad_bias != nullptr) {
    should_stream<T>(b) ? backward<T, kSilu, true, true>(b) : backward<T, kSilu, true, false>(b);
  } else {
    should_stream<T>(b) ? backward<T, kSilu, false, true>(b) : backward<T, kSilu, false, false>(b);
  }
}

}  // namespace

void ada_group_norm_backward_channels_last(const AdaGroupNormBackwardArgs& b) {
  visit(b.forward.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    b.forward.silu ? backward<T, true>(b) : backward<T, false>(b);
  });
}

}  // namespace lddgan::LDDGAN_ISA
