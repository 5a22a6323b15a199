// The forward kernel's two passes over a block of channels in channels_last: the statistics, and
// what they make of a value. ada_group_norm and norm_resample share them.
#pragma once

#include "ada_group_norm_common.h"

namespace lddgan::LDDGAN_ISA {
namespace {

// From the sums of deviations from the pivots and of their squares: mean, rstd, and the mean's
// deviation from the pivot.
LDDGAN_INLINE void finish_groups(const float* s, const float* ss, const float* pivot,
                                 int64_t groups, int64_t count, double eps, float* mean,
                                 float* rstd, float* delta) {
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
template <typename T, bool kSilu, bool kStream, typename Out, typename Lanes, typename Affine>
LDDGAN_INLINE void normalise(const T* x, Out* y, int64_t ahead, Lanes lanes, const Affine& affine) {
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

// Pixels whose sums are taken alone, by whichever thread, and then added to those of the others.
constexpr int64_t kTile = 8 * kPart;

inline int64_t tile_count(const AdaGroupNormArgs& a) { return (a.pixels + kTile - 1) / kTile; }

// Adds a tile's deviations from q, and their squares, to the sums of channels that lie in `parts`;
// q, s and ss start with channel `first`.
template <typename T>
void add_tile(const AdaGroupNormArgs& a, int64_t tile, int64_t first, const Segment* parts,
              int num_parts, const float* q, float* s, float* ss) {
  const int64_t begin = tile * kTile, end = begin + kTile < a.pixels ? begin + kTile : a.pixels;
  const T* sources[2] = {static_cast<const T*>(a.x), static_cast<const T*>(a.x2)};
  for (int k = 0; k < num_parts; ++k) {
    const Segment& part = parts[k];
    const T* x = sources[part.second] + part.offset;
    const int64_t to = part.channel - first;
    int64_t r = begin;
    for (; r + 8 <= end; r += 8) {
      add_pixels<8>(x + r * part.stride, part.stride, part.count, q + to, s + to, ss + to);
    }
    for (; r < end; ++r) {
      add_pixels<1>(x + r * part.stride, part.stride, part.count, q + to, s + to, ss + to);
    }
  }
}

// Rows of a block of whole groups; y = act((x - q) * gain + shift).
struct BlockRows {
  float *q, *gain, *shift;

  BlockRows(Workspace& workspace, int64_t block, int64_t groups) {
    float** const of_channels[] = {&q,  &gain,  &shift, &bias,          &s,
                                   &ss, &total, &lost,  &total_squares, &lost_squares};
    for (float** array : of_channels) *array = workspace.take(block);
    float** const of_groups[] = {&pivot, &group_s, &group_ss, &mean, &rstd, &delta};
    for (float** array : of_groups) *array = workspace.take(groups);
  }
  static int64_t floats(int64_t block, int64_t groups) {
    return 10 * Workspace::padded(block) + 6 * Workspace::padded(groups);
  }

  // Takes the statistics of channels [first, last) of sample n, which are whole groups and lie in
  // `parts`; writes them where they are wanted, and sets q, gain and shift.
  template <typename T>
  void take(const AdaGroupNormArgs& a, int64_t n, int64_t first, int64_t last, const Segment* parts,
            int num_parts);

  // The same in steps: begin sets q, every tile's sums are added in order (and cleared), finish
  // does the rest.
  template <typename T>
  void begin(const AdaGroupNormArgs& a, int64_t n, int64_t first, int64_t last,
             const Segment* parts, int num_parts);
  void add(float* tile_s, float* tile_ss, int64_t count) {
    add_part(total, lost, tile_s, count);
    add_part(total_squares, lost_squares, tile_ss, count);
  }
  void finish(const AdaGroupNormArgs& a, int64_t n, int64_t first, int64_t last);

 private:
  float *bias, *s, *ss, *total, *lost, *total_squares, *lost_squares;
  float *pivot, *group_s, *group_ss, *mean, *rstd, *delta;
};

template <typename T>
void BlockRows::begin(const AdaGroupNormArgs& a, int64_t n, int64_t first, int64_t last,
                      const Segment* parts, int num_parts) {
  const int64_t pixels = a.pixels, size = (a.channels1 + a.channels2) / a.groups;
  const T* sources[2] = {static_cast<const T*>(a.x), static_cast<const T*>(a.x2)};
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
      for_vectors(parts[k].count,
                  [&](int64_t i, auto lanes) { store(to + i, load(to + i) + load(x + i, lanes)); });
    }
  }
  for (int64_t g = 0; g < (last - first) / size; ++g) {
    float sample = 0;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) sample += s[i] + float(sampled) * bias[i];
    pivot[g] = sample / float(sampled * size);
    for (int64_t i = g * size; i < (g + 1) * size; ++i) q[i] = pivot[g] - bias[i];
  }

  float* const zeroed[] = {s, ss, total, lost, total_squares, lost_squares};
  for (float* sums : zeroed) fill_zero(sums, last - first);
}

inline void BlockRows::finish(const AdaGroupNormArgs& a, int64_t n, int64_t first, int64_t last) {
  const int64_t size = (a.channels1 + a.channels2) / a.groups, num_groups = (last - first) / size;
  for (int64_t g = 0; g < num_groups; ++g) {
    float sum_s = 0, sum_ss = 0;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) {
      sum_s += total[i] + lost[i];
      sum_ss += total_squares[i] + lost_squares[i];
    }
    group_s[g] = sum_s, group_ss[g] = sum_ss;
  }
  const int64_t group = n * a.groups + first / size;
  finish_groups(group_s, group_ss, pivot, num_groups, size * a.pixels, a.eps, mean, rstd, delta);
  write_statistics(a, group, num_groups, mean, rstd);
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int64_t i = g * size; i < (g + 1) * size; ++i) {
      gain[i] *= rstd[g];
      shift[i] -= delta[g] * gain[i];
    }
  }
}

template <typename T>
void BlockRows::take(const AdaGroupNormArgs& a, int64_t n, int64_t first, int64_t last,
                     const Segment* parts, int num_parts) {
  begin<T>(a, n, first, last, parts, num_parts);
  for (int64_t tile = 0; tile < tile_count(a); ++tile) {
    add_tile<T>(a, tile, first, parts, num_parts, q, s, ss);
    add(s, ss, last - first);
  }
  finish(a, n, first, last);
}

}  // namespace
}  // namespace lddgan::LDDGAN_ISA
