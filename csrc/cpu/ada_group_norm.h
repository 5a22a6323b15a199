// What the forward and the backward kernel of ada_group_norm share.
#pragma once

#include "lddgan/ada_group_norm.h"

#include <cstdlib>

#include "lddgan/parallel.h"
#include "lddgan/vec.h"

namespace lddgan::LDDGAN_ISA {
namespace {

// Arrays of floats for one thread, each padded so that whole vectors may be read and written.
class Workspace {
 public:
  explicit Workspace(int64_t floats)
      : data_(static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64))),
        next_(data_) {}
  ~Workspace() { std::free(data_); }
  Workspace(const Workspace&) = delete;

  static int64_t padded(int64_t count) { return (count + 31) / 16 * 16; }
  float* take(int64_t count) {
    float* array = next_;
    next_ += padded(count);
    return array;
  }

 private:
  float* data_;
  float* next_;
};

LDDGAN_INLINE void fill_zero(float* p, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) store(p + i, Vec{});
}

// Long sums are taken in parts, at most kPart additions each, added up with their rounding errors.
constexpr int64_t kPart = 32;

LDDGAN_INLINE void add_part(Vec& total, Vec& lost, Vec part) {
  Vec next = total + part;
  Vec added = next - total;
  lost += (total - (next - added)) + (part - added);
  total = next;
}

// The same on rows of channels; clears `part`.
LDDGAN_INLINE void add_part(float* total, float* lost, float* part, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) {
    Vec sum = load(total + i), error = load(lost + i);
    add_part(sum, error, load(part + i));
    store(total + i, sum);
    store(lost + i, error);
    store(part + i, Vec{});
  }
}

// Channels [begin, end) of row n as floats; zeros where the rows are null.
inline void read_row(const ChannelRows& rows, int64_t n, int64_t begin, int64_t end, float* to) {
  if (rows.data == nullptr) return fill_zero(to, end - begin);
  visit(rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = static_cast<const T*>(rows.data) + n * rows.stride + begin;
    for_vectors(end - begin,
                [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), Full{}); });
  });
}

// The bias of all channels: zero for those of x2.
inline void read_bias(const AdaGroupNormArgs& a, int64_t n, int64_t begin, int64_t end, float* to) {
  fill_zero(to, end - begin);
  if (a.bias.data != nullptr && begin < a.channels1) {
    read_row(a.bias, n, begin, end < a.channels1 ? end : a.channels1, to);
  }
}

inline void write_row(const float* from, int64_t count, void* to, Dtype dtype, int64_t offset) {
  visit(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* p = static_cast<T*>(to) + offset;
    for_vectors(count, [&](int64_t i, auto lanes) { store(p + i, load(from + i), lanes); });
  });
}

// In the contiguous layout: channel c of sample n, in whichever of x and x2 holds it.
template <typename T, typename Void>
T* channel_row(Void* first, Void* second, const AdaGroupNormArgs& a, int64_t n, int64_t c) {
  return c < a.channels1 ? static_cast<T*>(first) + (n * a.channels1 + c) * a.pixels
                         : static_cast<T*>(second) + (n * a.channels2 + c - a.channels1) * a.pixels;
}

// In channels_last: the part of a block of channels that lies in one of x and x2.
struct Segment {
  bool second;      // in x2
  int64_t offset;   // of its first channel in sample n's first pixel
  int64_t stride;   // from pixel to pixel
  int64_t channel;  // its first channel, of channels1 + channels2
  int64_t count;
};

// The segments of channels [begin, end) of sample n; returns how many.
inline int segments(const AdaGroupNormArgs& a, int64_t n, int64_t begin, int64_t end,
                    Segment* found) {
  int count = 0;
  int64_t c1 = a.channels1, c2 = a.channels2;
  if (begin < c1) {
    int64_t last = end < c1 ? end : c1;
    found[count++] = {false, n * a.pixels * c1 + begin, c1, begin, last - begin};
  }
  if (end > c1) {
    int64_t first = begin > c1 ? begin : c1;
    found[count++] = {true, n * a.pixels * c2 + first - c1, c2, first, end - first};
  }
  return count;
}

// How many channels one work item of the channels_last layout takes: whole groups and, where that
// can be, whole cache lines; a whole sample unless threads would idle or it exceeds `limit` bytes.
inline int64_t block_channels(const AdaGroupNormArgs& a, int64_t element_bytes, int64_t limit) {
  int64_t channels = a.channels1 + a.channels2, group = channels / a.groups;
  int64_t line = 64 / element_bytes, unit = group;
  while (unit % line != 0 && unit < channels) unit += group;
  int64_t threads = num_threads();
  int64_t blocks = a.samples % threads == 0 || a.samples >= 8 * threads ? 1 : threads;
  int64_t by_size = (channels * a.pixels * element_bytes + limit - 1) / limit;
  if (blocks < by_size) blocks = by_size;
  int64_t units = (channels + unit - 1) / unit;
  int64_t block = (units + blocks - 1) / blocks * unit;
  return block < channels ? block : channels;
}

// Work items a thread should take at the least: waking one costs as much as some 10000 elements.
inline int64_t grain(int64_t elements) {
  constexpr int64_t kElements = 8192;
  return elements < kElements ? kElements / (elements > 0 ? elements : 1) : 1;
}

}  // namespace
}  // namespace lddgan::LDDGAN_ISA
