// Forward. A work item is what one core's cache holds (a group, or in channels_last a block of
// whole groups), so that the second pass over it does not go to memory.
#include "ada_group_norm.h"

namespace lddgan::LDDGAN_ISA {
namespace {

// Sums of deviations from a pivot, and of their squares. The pivot is a mean over some of the
// group, so data far from zero lose no digits.
struct Moments {
  Vec s[4] = {}, ss[4] = {};
  Vec total = {}, lost = {}, total_squares = {}, lost_squares = {};
  int64_t pending = 0;  // elements in s and ss

  template <typename T>
  LDDGAN_INLINE void add_row(const T* x, int64_t count, float pivot) {
    const Vec q = broadcast(pivot);
    constexpr int64_t kMost = kPart * 4 * kWidth;
    for (int64_t begin = 0; begin < count; begin += kMost) {
      const int64_t end = begin + kMost < count ? begin + kMost : count;
      int64_t i = begin;
      for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
        for (int k = 0; k < 4; ++k) add(k, load(x + i + k * kWidth) - q);
      }
      for_vectors(end - i, [&](int64_t j, auto lanes) {
        add(0, keep_first(load(x + i + j, lanes) - q, lanes));
      });
      pending += end - begin;
      if (pending >= kMost) flush();
    }
  }

  LDDGAN_INLINE void add(int i, Vec deviation) {
    s[i] += deviation;
    ss[i] += deviation * deviation;
  }

  LDDGAN_INLINE void flush() {
    add_part(total, lost, (s[0] + s[1]) + (s[2] + s[3]));
    add_part(total_squares, lost_squares, (ss[0] + ss[1]) + (ss[2] + ss[3]));
    for (int k = 0; k < 4; ++k) s[k] = ss[k] = Vec{};
    pending = 0;
  }
};

// From the sums of deviations from the pivots and of their squares: mean, rstd, and the mean's
// deviation from the pivot.
LDDGAN_INLINE void finish(const float* s, const float* ss, const float* pivot, int64_t groups,
                          int64_t count, double eps, float* mean, float* rstd, float* delta) {
  const double scale = 1.0 / double(count);
  for (int64_t g = 0; g < groups; ++g) {
    const double d = s[g] * scale;
    const double variance = ss[g] * scale - d * d;
    rstd[g] = float(1.0 / __builtin_sqrt((variance > 0 ? variance : 0) + eps));
    delta[g] = float(d);
    mean[g] = float(pivot[g] + d);
  }
}

LDDGAN_INLINE void write_statistics(const AdaGroupNormArgs& a, int64_t first, int64_t groups,
                                    const float* mean, const float* rstd) {
  if (a.mean == nullptr) return;
  for (int64_t g = 0; g < groups; ++g) a.mean[first + g] = mean[g], a.rstd[first + g] = rstd[g];
}

// The second pass on one or more vectors: y = act(affine(x)), affine(k, v) being the k-th one's.
// Meanwhile what lies `ahead` is fetched: what is read next.
template <typename T, bool kSilu, bool kStream, typename Lanes, typename Affine>
LDDGAN_INLINE void normalise(const T* x, T* y, int64_t ahead, Lanes lanes, const Affine& affine) {
  constexpr int kCount = kVectorsOf<Lanes>;
  prefetch<Lanes>(x + ahead);
  Vec u[kCount], s[kCount];
  for (int k = 0; k < kCount; ++k) u[k] = affine(k, load(x + k * kWidth, lanes));
  if constexpr (kSilu) sigmoid<T>(u, s);
  for (int k = 0; k < kCount; ++k) {
    const Vec value = kSilu ? u[k] * s[k] : u[k];
    if constexpr (kStream) {
      store_stream(y + k * kWidth, value);
    } else {
      store(y + k * kWidth, value, lanes);
    }
  }
}

// How far apart the vectors are that the pivot is taken from.
constexpr int64_t kPivotStep = 1024;

// Elements whose statistics are taken before their output is written: the reductions and roots of
// several groups then overlap, and the second pass still finds its input in the cache.
constexpr int64_t kBatch = 16384;

// Neighbouring channels of a group that lie together in memory and share a bias: all or one each.
struct Runs {
  int64_t count, length;
  Runs(const AdaGroupNormArgs& a, int64_t first, int64_t size) : count(1), length(size * a.pixels) {
    if (a.bias.data != nullptr || (first < a.channels1 && first + size > a.channels1)) {
      count = size, length = a.pixels;
    }
  }
};

// One sample's rows and the statistics of a batch of its groups.
struct Batch {
  float *scale, *shift, *bias;         // of all channels
  float *pivot, *mean, *rstd, *delta;  // of the groups
  float *rows, *more_rows;             // a vector a group
  float *s, *ss;
};

// The first pass over groups [first_group, first_group + groups) of sample n.
template <typename T>
void batch_statistics(const AdaGroupNormArgs& a, int64_t n, int64_t first_group, int64_t groups,
                      const Batch& b) {
  const int64_t size = (a.channels1 + a.channels2) / a.groups;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = (first_group + g) * size;
    const Runs runs(a, first, size);
    Vec sample = {};
    int64_t sampled = 0;
    for (int64_t c = first; c < first + runs.count; ++c) {
      const T* x = channel_row<const T>(a.x, a.x2, a, n, c);
      for (int64_t i = 0; i < runs.length; i += kPivotStep) {
        const int count = runs.length - i < kWidth ? int(runs.length - i) : kWidth;
        const Vec v = load_up_to(x + i, count) + b.bias[c];
        sample += count == kWidth ? v : keep_first(v, count);
        sampled += count;
      }
    }
    store(b.rows + g * kWidth, sample * (1.0f / float(sampled)));
  }
  sum_rows(b.rows, groups, b.pivot);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = (first_group + g) * size;
    const Runs runs(a, first, size);
    Moments m;
    for (int64_t c = first; c < first + runs.count; ++c) {
      m.add_row(channel_row<const T>(a.x, a.x2, a, n, c), runs.length, b.pivot[g] - b.bias[c]);
    }
    m.flush();
    store(b.rows + g * kWidth, m.total + m.lost);
    store(b.more_rows + g * kWidth, m.total_squares + m.lost_squares);
  }
  sum_rows(b.rows, groups, b.s);
  sum_rows(b.more_rows, groups, b.ss);
  const int64_t item = n * a.groups + first_group;
  finish(b.s, b.ss, b.pivot, groups, size * a.pixels, a.eps, b.mean, b.rstd, b.delta);
  write_statistics(a, item, groups, b.mean, b.rstd);
}

template <typename T, bool kSilu, bool kStream>
void batch_output(const AdaGroupNormArgs& a, int64_t n, int64_t first_group, int64_t groups,
                  const Batch& b) {
  const int64_t channels = a.channels1 + a.channels2, size = channels / a.groups;
  const int64_t pixels = a.pixels, ahead = groups * size * pixels;
  T* y = static_cast<T*>(a.out) + (n * channels + first_group * size) * pixels;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = (first_group + g) * size; c < (first_group + g + 1) * size; ++c, y += pixels) {
      const T* x = channel_row<const T>(a.x, a.x2, a, n, c);
      const float scale = b.scale[c] * b.rstd[g];
      const Vec q = broadcast(b.pivot[g] - b.bias[c]), gain = broadcast(scale),
                add = broadcast(b.shift[c] - b.delta[g] * scale);
      for_vectors<kForwardBlock>(pixels, [&](int64_t i, auto lanes) {
        normalise<T, kSilu, kStream>(x + i, y + i, ahead, lanes,
                                     [&](int, Vec v) { return (v - q) * gain + add; });
      });
    }
  }
  if (kStream) stream_fence();
}

template <typename T, bool kSilu, bool kStream>
void forward_contiguous(const AdaGroupNormArgs& a, int64_t begin, int64_t end) {
  const int64_t channels = a.channels1 + a.channels2;
  const int64_t batch = batch_groups(a, kBatch);
  const int64_t rows = (batch + kWidth - 1) / kWidth * kWidth * kWidth;
  Workspace workspace(3 * Workspace::padded(channels) + 6 * Workspace::padded(batch) +
                      2 * Workspace::padded(rows));
  Batch b{};
  float** const of_channels[] = {&b.scale, &b.shift, &b.bias};
  for (float** array : of_channels) *array = workspace.take(channels);
  float** const of_groups[] = {&b.pivot, &b.mean, &b.rstd, &b.delta, &b.s, &b.ss};
  for (float** array : of_groups) *array = workspace.take(batch);
  b.rows = workspace.take(rows);
  b.more_rows = workspace.take(rows);
  for (int64_t item = begin; item < end;) {
    const int64_t n = item / a.groups, first = item % a.groups;
    if (item == begin || first == 0) {
      read_row(a.scale, n, 0, channels, b.scale);
      read_row(a.shift, n, 0, channels, b.shift);
      read_bias(a, n, 0, channels, b.bias);
    }
    int64_t groups = a.groups - first < batch ? a.groups - first : batch;
    if (groups > end - item) groups = end - item;
    batch_statistics<T>(a, n, first, groups, b);
    batch_output<T, kSilu, kStream>(a, n, first, groups, b);
    item += groups;
  }
}

// Adds `kRows` pixels of one segment to the sums of its channels.
template <int kRows, typename T>
LDDGAN_INLINE void add_pixels(const T* x, int64_t stride, int64_t count, const float* q, float* s,
                              float* ss) {
  for_vectors(count, [&](int64_t i, auto lanes) {
    const Vec pivot = load(q + i);
    Vec total = {}, squares = {};
    for (int r = 0; r < kRows; ++r) {
      Vec d = keep_first(load(x + r * stride + i, lanes) - pivot, lanes);
      total += d;
      squares += d * d;
    }
    store(s + i, load(s + i) + total);
    store(ss + i, load(ss + i) + squares);
  });
}

template <typename T, bool kSilu, bool kStream>
void forward_channels_last(const AdaGroupNormArgs& a, int64_t block, int64_t begin, int64_t end) {
  const int64_t channels = a.channels1 + a.channels2, pixels = a.pixels;
  const int64_t size = channels / a.groups, blocks = (channels + block - 1) / block;
  const int64_t groups = block / size;
  // Where a block is too large for the cache, its last pixels are still there.
  const bool backwards = block * pixels * int64_t(sizeof(T)) > kCache;
  Workspace workspace(10 * Workspace::padded(block) + 6 * Workspace::padded(groups));
  float* q = workspace.take(block);      // pivot - bias
  float* gain = workspace.take(block);   // scale * rstd
  float* shift = workspace.take(block);  // shift - delta * gain
  float* bias = workspace.take(block);
  float* s = workspace.take(block);
  float* ss = workspace.take(block);
  float* total = workspace.take(block);
  float* lost = workspace.take(block);
  float* total_squares = workspace.take(block);
  float* lost_squares = workspace.take(block);
  float* pivot = workspace.take(groups);
  float* group_s = workspace.take(groups);
  float* group_ss = workspace.take(groups);
  float* mean = workspace.take(groups);
  float* rstd = workspace.take(groups);
  float* delta = workspace.take(groups);
  const T* sources[2] = {static_cast<const T*>(a.x), static_cast<const T*>(a.x2)};
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, first = item % blocks * block;
    const int64_t last = first + block < channels ? first + block : channels;
    Segment parts[2];
    const int num_parts = segments(a, n, first, last, parts);
    read_row(a.scale, n, first, last, gain);
    read_row(a.shift, n, first, last, shift);
    read_bias(a, n, first, last, bias);

    // Pivots: each group's mean over a few pixels.
    const int64_t sampled = pixels < 4 ? pixels : (pixels / 256 > 4 ? pixels / 256 : 4);
    const int64_t step = pixels / sampled;
    fill_zero(s, last - first);
    for (int64_t r = 0; r < sampled; ++r) {
      for (int k = 0; k < num_parts; ++k) {
        const T* x = sources[parts[k].second] + parts[k].offset + r * step * parts[k].stride;
        float* to = s + parts[k].channel - first;
        for_vectors(parts[k].count, [&](int64_t i, auto lanes) {
          store(to + i, load(to + i) + load(x + i, lanes));
        });
      }
    }
    const int64_t num_groups = (last - first) / size;
    for (int64_t g = 0; g < num_groups; ++g) {
      float sample = 0;
      for (int64_t i = g * size; i < (g + 1) * size; ++i) sample += s[i] + float(sampled) * bias[i];
      pivot[g] = sample / float(sampled * size);
      for (int64_t i = g * size; i < (g + 1) * size; ++i) q[i] = pivot[g] - bias[i];
    }

    float* const zeroed1[] = {s, ss, total, lost, total_squares, lost_squares};
    for (float* sums : zeroed1) {
      fill_zero(sums, last - first);
    }
    for (int64_t begin_row = 0; begin_row < pixels; begin_row += 8 * kPart) {
      const int64_t end_row = begin_row + 8 * kPart < pixels ? begin_row + 8 * kPart : pixels;
      for (int k = 0; k < num_parts; ++k) {
        const Segment& part = parts[k];
        const T* x = sources[part.second] + part.offset;
        const int64_t to = part.channel - first;
        int64_t r = begin_row;
        for (; r + 8 <= end_row; r += 8) {
          add_pixels<8>(x + r * part.stride, part.stride, part.count, q + to, s + to, ss + to);
        }
        for (; r < end_row; ++r) {
          add_pixels<1>(x + r * part.stride, part.stride, part.count, q + to, s + to, ss + to);
        }
      }
      add_part(total, lost, s, last - first);
      add_part(total_squares, lost_squares, ss, last - first);
    }
    for (int64_t g = 0; g < num_groups; ++g) {
      float sum_s = 0, sum_ss = 0;
      for (int64_t i = g * size; i < (g + 1) * size; ++i) {
        sum_s += total[i] + lost[i];
        sum_ss += total_squares[i] + lost_squares[i];
      }
      group_s[g] = sum_s, group_ss[g] = sum_ss;
    }
    const int64_t group = n * a.groups + first / size;
    finish(group_s, group_ss, pivot, num_groups, size * pixels, a.eps, mean, rstd, delta);
    write_statistics(a, group, num_groups, mean, rstd);
    for (int64_t g = 0; g < num_groups; ++g) {
      for (int64_t i = g * size; i < (g + 1) * size; ++i) {
        gain[i] *= rstd[g];
        shift[i] -= delta[g] * gain[i];
      }
    }

    T* out = static_cast<T*>(a.out) + n * pixels * channels;
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t r = backwards ? pixels - 1 - i : i;
      for (int k = 0; k < num_parts; ++k) {
        const T* x = sources[parts[k].second] + parts[k].offset + r * parts[k].stride;
        T* y = out + r * channels + parts[k].channel;
        const int64_t from = parts[k].channel - first;
        const int64_t ahead = backwards ? -8 * parts[k].stride : next_item(a, parts[k], block);
        for_vectors<kForwardBlock>(parts[k].count, [&](int64_t i, auto lanes) {
          normalise<T, kSilu, kStream>(x + i, y + i, ahead, lanes, [&](int v, Vec value) {
            const int64_t j = from + i + v * kWidth;
            return (value - load(q + j)) * load(gain + j) + load(shift + j);
          });
        });
      }
    }
  }
}

// Whether to write past the caches: where the output would push out what the passes read again, and
// whole vectors can be written.
template <typename T>
bool should_stream(const AdaGroupNormArgs& a) {
  const int64_t channels = a.channels1 + a.channels2;
  const int64_t row = a.channels_last ? channels | a.channels1 : a.pixels;
  const int64_t bytes = channels * a.pixels * int64_t(sizeof(T));
  return row % 16 == 0 && reinterpret_cast<uintptr_t>(a.out) % 64 == 0 &&
         (a.channels_last ? bytes >= kCache / 2 : worth_streaming(2 * a.samples * bytes));
}

template <typename T, bool kSilu, bool kStream>
void forward(const AdaGroupNormArgs& a) {
  const int64_t channels = a.channels1 + a.channels2;
  if (!a.channels_last) {
    parallel_for(
        a.samples * a.groups, grain(channels / a.groups * a.pixels),
        [&](int64_t begin, int64_t end) { forward_contiguous<T, kSilu, kStream>(a, begin, end); });
    return;
  }
  const int64_t block = block_channels(a, sizeof(T));
  parallel_for(a.samples * ((channels + block - 1) / block), grain(block * a.pixels),
               [&](int64_t begin, int64_t end) {
                 forward_channels_last<T, kSilu, kStream>(a, block, begin, end);
               });
}

}  // namespace

void ada_group_norm_forward(const AdaGroupNormArgs& a) {
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool stream = should_stream<T>(a);
    if (a.silu) {
      stream ? forward<T, true, true>(a) : forward<T, true, false>(a);
    } else {
      stream ? forward<T, false, true>(a) : forward<T, false, false>(a);
    }
  });
}

}  // namespace lddgan::LDDGAN_ISA
