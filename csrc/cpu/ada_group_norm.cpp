// Forward. A work item is what one core's cache holds (a group, or in channels_last a block of
// whole groups), so that the second pass over it does not go to memory.
#include "ada_group_norm_channels_last.h"

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
  finish_groups(b.s, b.ss, b.pivot, groups, size * a.pixels, a.eps, b.mean, b.rstd, b.delta);
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

// The second pass over pixels [begin, end) of the channels of a sample that lie in `parts`; `rows`
// start with channel `first`. What lies `ahead(part)` is fetched.
template <typename T, bool kSilu, bool kStream, typename Ahead>
void write_pixels(const AdaGroupNormArgs& a, int64_t n, int64_t first, const Segment* parts,
                  int num_parts, const BlockRows& rows, int64_t begin, int64_t end, bool backwards,
                  const Ahead& ahead) {
  const int64_t channels = a.channels1 + a.channels2;
  const T* sources[2] = {static_cast<const T*>(a.x), static_cast<const T*>(a.x2)};
  T* out = static_cast<T*>(a.out) + n * a.pixels * channels;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t r = backwards ? begin + end - 1 - p : p;
    for (int k = 0; k < num_parts; ++k) {
      const T* x = sources[parts[k].second] + parts[k].offset + r * parts[k].stride;
      T* y = out + r * channels + parts[k].channel;
      const int64_t from = parts[k].channel - first, next = ahead(parts[k]);
      for_vectors<kForwardBlock>(parts[k].count, [&](int64_t i, auto lanes) {
        normalise<T, kSilu, kStream>(x + i, y + i, next, lanes, [&](int v, Vec value) {
          const int64_t j = from + i + v * kWidth;
          return (value - load(rows.q + j)) * load(rows.gain + j) + load(rows.shift + j);
        });
      });
    }
  }
  if (kStream) stream_fence();
}

template <typename T, bool kSilu, bool kStream>
void forward_channels_last(const AdaGroupNormArgs& a, int64_t block, int64_t begin, int64_t end) {
  const int64_t channels = a.channels1 + a.channels2, pixels = a.pixels;
  const int64_t blocks = (channels + block - 1) / block;
  const int64_t groups = block / (channels / a.groups);
  // Where a block is too large for the cache, its last pixels are still there.
  const bool backwards = block * pixels * int64_t(sizeof(T)) > kCache;
  Workspace workspace(BlockRows::floats(block, groups));
  BlockRows rows(workspace, block, groups);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, first = item % blocks * block;
    const int64_t last = first + block < channels ? first + block : channels;
    Segment parts[2];
    const int num_parts = segments(a, n, first, last, parts);
    rows.take<T>(a, n, first, last, parts, num_parts);
    auto ahead = [&](const Segment& part) {
      return backwards ? -8 * part.stride : next_item(a, part, block);
    };
    write_pixels<T, kSilu, kStream>(a, n, first, parts, num_parts, rows, 0, pixels, backwards,
                                    ahead);
  }
}

// Elements of a sample from which threads share it by pixels. By channels they would be started
// once and not twice, but each would write and fetch lines that lie between those of the others.
constexpr int64_t kLarge = 1 << 18;

template <typename T, bool kSilu, bool kStream>
void forward_by_tile(const AdaGroupNormArgs& a) {
  const int64_t channels = a.channels1 + a.channels2, pixels = a.pixels, tiles = tile_count(a);
  const int64_t step = Workspace::padded(channels);
  // Where what a thread reads is too large for the cache, its last pixels are still there.
  const bool backwards = channels * pixels * int64_t(sizeof(T)) > num_threads() * kCache;
  Workspace workspace(BlockRows::floats(channels, a.groups) + 2 * Workspace::padded(tiles * step));
  BlockRows rows(workspace, channels, a.groups);
  float* const s = workspace.take(tiles * step);
  float* const ss = workspace.take(tiles * step);
  for (int64_t n = 0; n < a.samples; ++n) {
    Segment parts[2];
    const int num_parts = segments(a, n, 0, channels, parts);
    rows.begin<T>(a, n, 0, channels, parts, num_parts);
    parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        fill_zero(s + t * step, channels);
        fill_zero(ss + t * step, channels);
        add_tile<T>(a, t, 0, parts, num_parts, rows.q, s + t * step, ss + t * step);
      }
    });
    for (int64_t t = 0; t < tiles; ++t) rows.add(s + t * step, ss + t * step, channels);
    rows.finish(a, n, 0, channels);
    parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
      const int64_t last = end * kTile < pixels ? end * kTile : pixels;
      for (int k = 0; k < num_parts; ++k) {
        write_pixels<T, kSilu, kStream>(
            a, n, 0, parts + k, 1, rows, begin * kTile, last, backwards,
            [&](const Segment& part) { return (backwards ? -8 : 8) * part.stride; });
      }
    });
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
  const int64_t threads = num_threads();
  if (a.samples < threads && channels * a.pixels >= kLarge && tile_count(a) >= 2 * threads) {
    return forward_by_tile<T, kSilu, kStream>(a);
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
