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

struct Norm {
  float delta;  // mean - pivot
  float rstd;
};

LDDGAN_INLINE Norm finish(double s, double ss, int64_t count, double eps) {
  double delta = s / double(count);
  double variance = ss / double(count) - delta * delta;
  return {float(delta), float(1.0 / __builtin_sqrt((variance > 0 ? variance : 0) + eps))};
}

template <typename T, bool kSilu>
LDDGAN_INLINE Vec activate(Vec u) {
  return kSilu ? u * sigmoid_for<T>(u) : u;
}

// How far apart the vectors are that the pivot is taken from.
constexpr int64_t kPivotStep = 4096;

// What the second pass needs of one group's channels.
struct ChannelArrays {
  float* q;     // pivot - bias
  float* gain;  // scale * rstd
  float* add;   // shift - delta * gain
};

// The first pass over a group of the contiguous layout; scale, shift and bias are sample n's.
template <typename T>
void group_statistics(const AdaGroupNormArgs& a, int64_t item, const float* scale,
                      const float* shift, const float* bias, ChannelArrays to) {
  const int64_t size = (a.channels1 + a.channels2) / a.groups, pixels = a.pixels;
  const int64_t n = item / a.groups, first = item % a.groups * size;
  Vec sample = {};
  int64_t sampled = 0;
  for (int64_t c = first; c < first + size; ++c) {
    const T* x = channel_row<const T>(a.x, a.x2, a, n, c);
    for (int64_t i = 0; i < pixels; i += kPivotStep) {
      int count = pixels - i < kWidth ? int(pixels - i) : kWidth;
      Vec v = count == kWidth ? load(x + i) : load_tail(x + i, count);
      sample += keep_first(v + bias[c], count);
      sampled += count;
    }
  }
  const float pivot = sum(sample) / float(sampled);
  Moments m;
  if (a.bias.data == nullptr && (first >= a.channels1 || first + size <= a.channels1)) {
    m.add_row(channel_row<const T>(a.x, a.x2, a, n, first), size * pixels, pivot);
  } else {
    for (int64_t c = first; c < first + size; ++c) {
      m.add_row(channel_row<const T>(a.x, a.x2, a, n, c), pixels, pivot - bias[c]);
    }
  }
  m.flush();
  const Norm norm =
      finish(sum(m.total + m.lost), sum(m.total_squares + m.lost_squares), size * pixels, a.eps);
  a.mean[item] = pivot + norm.delta;
  a.rstd[item] = norm.rstd;
  for (int64_t i = 0; i < size; ++i) {
    const float gain = scale[first + i] * norm.rstd;
    to.q[i] = pivot - bias[first + i];
    to.gain[i] = gain;
    to.add[i] = shift[first + i] - norm.delta * gain;
  }
}

template <typename T, bool kSilu, bool kStream>
void group_output(const AdaGroupNormArgs& a, int64_t item, ChannelArrays from) {
  const int64_t size = (a.channels1 + a.channels2) / a.groups, pixels = a.pixels;
  const int64_t n = item / a.groups, first = item % a.groups * size;
  T* y = static_cast<T*>(a.out) + item * size * pixels;
  for (int64_t c = 0; c < size; ++c, y += pixels) {
    const T* x = channel_row<const T>(a.x, a.x2, a, n, first + c);
    const Vec q = broadcast(from.q[c]), gain = broadcast(from.gain[c]),
              add = broadcast(from.add[c]);
    for_vectors(pixels, [&](int64_t i, auto lanes) {
      // The group after the next, which the first pass meets next.
      __builtin_prefetch(x + i + 2 * size * pixels, 0, 2);
      __builtin_prefetch(y + i + 512, 1, 3);
      Vec value = activate<T, kSilu>((load(x + i, lanes) - q) * gain + add);
      if constexpr (kStream) {
        store_stream(y + i, value);
      } else {
        store(y + i, value, lanes);
      }
    });
  }
  if (kStream) stream_fence();
}

template <typename T, bool kSilu, bool kStream>
void forward_contiguous(const AdaGroupNormArgs& a, int64_t begin, int64_t end) {
  const int64_t channels = a.channels1 + a.channels2, size = channels / a.groups;
  Workspace workspace(3 * Workspace::padded(channels) + 6 * Workspace::padded(size));
  float* scale = workspace.take(channels);
  float* shift = workspace.take(channels);
  float* bias = workspace.take(channels);
  ChannelArrays arrays[2];
  for (auto& array : arrays) {
    array = {workspace.take(size), workspace.take(size), workspace.take(size)};
  }
  auto statistics = [&](int64_t item) {
    if (item == begin || item % a.groups == 0) {
      const int64_t n = item / a.groups;
      read_row(a.scale, n, 0, channels, scale);
      read_row(a.shift, n, 0, channels, shift);
      read_bias(a, n, 0, channels, bias);
    }
    group_statistics<T>(a, item, scale, shift, bias, arrays[item % 2]);
  };
  // One group ahead, so that the second pass need not wait for the root and the division.
  statistics(begin);
  for (int64_t item = begin; item < end; ++item) {
    if (item + 1 < end) statistics(item + 1);
    group_output<T, kSilu, kStream>(a, item, arrays[item % 2]);
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

template <typename T, bool kSilu>
void forward_channels_last(const AdaGroupNormArgs& a, int64_t block, int64_t begin, int64_t end) {
  const int64_t channels = a.channels1 + a.channels2, pixels = a.pixels;
  const int64_t size = channels / a.groups, blocks = (channels + block - 1) / block;
  Workspace workspace(10 * Workspace::padded(block));
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
    for (int64_t c = 0; c < last - first; c += size) {
      float sample = 0;
      for (int64_t i = c; i < c + size; ++i) sample += s[i] + float(sampled) * bias[i];
      const float pivot = sample / float(sampled * size);
      for (int64_t i = c; i < c + size; ++i) q[i] = pivot - bias[i];
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
    for (int64_t c = 0; c < last - first; c += size) {
      double group_total = 0, group_squares = 0;
      for (int64_t i = c; i < c + size; ++i) {
        group_total += double(total[i]) + double(lost[i]);
        group_squares += double(total_squares[i]) + double(lost_squares[i]);
      }
      const Norm norm = finish(group_total, group_squares, size * pixels, a.eps);
      const int64_t group = n * a.groups + (first + c) / size;
      a.mean[group] = q[c] + bias[c] + norm.delta;
      a.rstd[group] = norm.rstd;
      for (int64_t i = c; i < c + size; ++i) {
        gain[i] *= norm.rstd;
        shift[i] -= norm.delta * gain[i];
      }
    }

    T* out = static_cast<T*>(a.out) + n * pixels * channels;
    for (int64_t r = 0; r < pixels; ++r) {
      for (int k = 0; k < num_parts; ++k) {
        const T* x = sources[parts[k].second] + parts[k].offset + r * parts[k].stride;
        T* y = out + r * channels + parts[k].channel;
        // From here to the same place of the next work item.
        const int64_t ahead = blocks > 1 ? block : parts[k].stride * pixels;
        const int64_t from = parts[k].channel - first;
        for_vectors(parts[k].count, [&](int64_t i, auto lanes) {
          __builtin_prefetch(x + i + ahead, 0, 2);
          __builtin_prefetch(y + i + 512, 1, 3);
          Vec u = (load(x + i, lanes) - load(q + from + i)) * load(gain + from + i) +
                  load(shift + from + i);
          store(y + i, activate<T, kSilu>(u), lanes);
        });
      }
    }
  }
}

template <typename T, bool kSilu>
void forward(const AdaGroupNormArgs& a) {
  const int64_t channels = a.channels1 + a.channels2;
  if (!a.channels_last) {
    const bool stream = worth_streaming(2 * a.samples * channels * a.pixels * int64_t(sizeof(T))) &&
                        a.pixels % 32 == 0 && reinterpret_cast<uintptr_t>(a.out) % 64 == 0;
    parallel_for(a.samples * a.groups, grain(channels / a.groups * a.pixels),
                 [&](int64_t begin, int64_t end) {
                   if (stream) {
                     forward_contiguous<T, kSilu, true>(a, begin, end);
                   } else {
                     forward_contiguous<T, kSilu, false>(a, begin, end);
                   }
                 });
    return;
  }
  const int64_t block = block_channels(a, sizeof(T), 1 << 24);
  parallel_for(
      a.samples * ((channels + block - 1) / block), grain(block * a.pixels),
      [&](int64_t begin, int64_t end) { forward_channels_last<T, kSilu>(a, block, begin, end); });
}

}  // namespace

void ada_group_norm_forward(const AdaGroupNormArgs& a) {
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (a.silu) {
      forward<T, true>(a);
    } else {
      forward<T, false>(a);
    }
  });
}

}  // namespace lddgan::LDDGAN_ISA
