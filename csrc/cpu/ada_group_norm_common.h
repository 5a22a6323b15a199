// What the forward and the backward kernel of ada_group_norm share.
#pragma once

#include "lddgan/ada_group_norm.h"

#include <cstdlib>

#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

// ada_group_norm_backward of that layout.
void ada_group_norm_backward_channels_last(const AdaGroupNormBackwardArgs& b);

namespace {

// Arrays of floats for one thread, each padded so that whole vectors may be read and written; on
// the stack where they are few.
class Workspace {
 public:
  explicit Workspace(int64_t floats)
      : heap_(floats <= kOnStack
                  ? nullptr
                  : static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64))),
        next_(heap_ == nullptr ? stack_ : heap_) {}
  ~Workspace() { std::free(heap_); }
  Workspace(const Workspace&) = delete;

  static int64_t padded(int64_t count) { return (count + 31) / 16 * 16; }
  float* take(int64_t count) {
    float* array = next_;
    next_ += padded(count);
    return array;
  }

 private:
  static constexpr int64_t kOnStack = 16384;
  alignas(64) float stack_[kOnStack];
  float* heap_;
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

// to[i] is the sum of the kWidth elements of row i; whole vectors of `to` are written.
inline void sum_rows(const float* rows, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kWidth) {
    Vec block[kWidth];
    for (int k = 0; k < kWidth; ++k) block[k] = load(rows + (i + k) * kWidth);
    store(to + i, sums(block));
  }
}

// s[k] = 1 / (1 + e^-x[k]), exact enough for a result that is stored as T: relative error 5e-4 for
// bfloat16, 2e-4 for half precision, 2e-7 for float, and where x is negative 6e-8 |x| (what
// rounding x amounts to). Every step is taken for all k before the next.
template <typename T, int count>
LDDGAN_INLINE void sigmoid(const Vec (&x)[count], Vec (&s)[count]) {
  constexpr bool kFine = sizeof(T) == 4;
  Vec t[count], r[count], p[count];
  auto each = [](auto f) __attribute__((always_inline)) {
    for (int k = 0; k < count; ++k) f(k);
  };
#if defined(__AVX512F__)
  // e^-x = 2^t = 2^floor(t) 2^r with r in [0, 1): minimax polynomials of relative error 8e-8, 7e-5.
  each([&](int k) { t[k] = x[k] * -1.44269504f; });
  if constexpr (kFine) each([&](int k) { t[k] = min(broadcast(126.0f), t[k]); });
  each([&](int k) {
    r[k] = (Vec)_mm512_reduce_ps((__m512)t[k], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  });
  if constexpr (kFine) {
    each([&](int k) { p[k] = r[k] * 1.87757667e-3f + 8.98934009e-3f; });
    each([&](int k) { p[k] = p[k] * r[k] + 5.58263180e-2f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.240153617f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.693153073f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.999999925f; });
  } else {
    each([&](int k) { p[k] = r[k] * 7.80245227e-2f + 0.226067155f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.695833540f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.999925219f; });
  }
  each([&](int k) { p[k] = (Vec)_mm512_scalef_ps((__m512)p[k], (__m512)t[k]); });
  each([&](int k) { p[k] = p[k] + 1.0f; });
  each([&](int k) { s[k] = (Vec)_mm512_rcp14_ps((__m512)p[k]); });
  if constexpr (kFine) {
    each([&](int k) { p[k] = 1.0f - p[k] * s[k]; });
    each([&](int k) { s[k] = s[k] + s[k] * p[k]; });
  }
#else
  // e^-x = 2^n 2^r with |r| <= 1/2, by the trick of adding 1.5 * 2^23; clamped so that the sum
  // below stays finite. Minimax polynomials of relative error 2e-9 and 7e-5.
  const Vec magic = broadcast(12582912.0f);
  Vec n[count];
  each([&](int k) { s[k] = min(max(x[k], broadcast(-87.0f)), broadcast(87.0f)); });
  each([&](int k) { t[k] = s[k] * -1.44269504f + magic; });
  each([&](int k) { n[k] = magic - t[k]; });
  each([&](int k) { r[k] = s[k] * -1.44269504f + n[k]; });
  if constexpr (kFine) {
    each([&](int k) { p[k] = r[k] * 1.53458122e-4f + 1.33999312e-3f; });
    each([&](int k) { p[k] = p[k] * r[k] + 9.61848896e-3f; });
    each([&](int k) { p[k] = p[k] * r[k] + 5.55032878e-2f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.240226469f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.693147206f; });
    each([&](int k) { p[k] = p[k] * r[k] + 1.0f; });
  } else {
    each([&](int k) { p[k] = r[k] * 5.5171669e-2f + 0.242611122f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.693260985f; });
    each([&](int k) { p[k] = p[k] * r[k] + 0.999928074f; });
  }
  each([&](int k) { p[k] = 1.0f + (Vec)((VecU)p[k] + ((VecU)t[k] << 23)); });
#if defined(__AVX2__)
  // 12 bits are bfloat16's 8 and some, and Newton's step makes them half precision's; a division
  // takes longer, but float needs it.
  if constexpr (!kFine) {
    each([&](int k) { s[k] = (Vec)_mm256_rcp_ps((__m256)p[k]); });
    if constexpr (std::is_same_v<T, Half>) {
      each([&](int k) { p[k] = 1.0f - p[k] * s[k]; });
      each([&](int k) { s[k] = s[k] + s[k] * p[k]; });
    }
    return;
  }
#endif
#if defined(LDDGAN_NEON)
  // 8 bits, which each of Newton's steps doubles: together shorter than a division.
  auto refine = [&](int k) __attribute__((always_inline)) {
    s[k] = s[k] * (Vec)vrecpsq_f32((float32x4_t)p[k], (float32x4_t)s[k]);
  };
  each([&](int k) { s[k] = (Vec)vrecpeq_f32((float32x4_t)p[k]); });
  each(refine);
  if constexpr (kFine) each(refine);
#else
  each([&](int k) { s[k] = 1.0f / p[k]; });
#endif
#endif
  // What was clamped is zero: times a large x it would not be.
  each([&](int k) { s[k] = select(x[k] < broadcast(-87.0f), Vec{}, s[k]); });
}

// v[k] = grad[k] act'(u[k])
template <typename T, bool kSilu, int count>
LDDGAN_INLINE void before_activation(const Vec (&u)[count], Vec (&v)[count]) {
  if constexpr (kSilu) {
    Vec s[count];
    sigmoid<T>(u, s);
    for (int k = 0; k < count; ++k) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
      v[k] *= s[k] * (u[k] - u[k] * s[k]) + s[k];
#else
      v[k] *= s[k] * (u[k] * (1.0f - s[k])) + s[k];  // u s would be rounded before it cancels
#endif
    }
  }
}

// Vectors that the forward and the backward pass take at once: what the registers hold.
constexpr int kForwardBlock = 4;
constexpr int kBackwardBlock = 2;

// Fetches as many vectors from p on into the second cache as `Lanes` stands for.
template <typename Lanes, typename T>
LDDGAN_INLINE void prefetch(const T* p) {
  constexpr int kLine = 64 / sizeof(T);
  for (int i = 0; i < kVectorsOf<Lanes> * kWidth; i += kLine) __builtin_prefetch(p + i, 0, 2);
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

// In the contiguous layout: how many groups a thread takes at once, `elements` or a few more.
inline int64_t batch_groups(const AdaGroupNormArgs& a, int64_t elements) {
  const int64_t group = (a.channels1 + a.channels2) / a.groups * a.pixels;
  const int64_t batch = elements / group > 1 ? elements / group : 1;
  return batch < a.groups ? batch : a.groups;
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

// What a core's own cache holds, about: small enough for most processors.
constexpr int64_t kCache = 1 << 20;

// How many channels one work item of the channels_last layout takes: whole groups and, where that
// can be, whole vectors; a whole sample unless threads would idle.
inline int64_t block_channels(const AdaGroupNormArgs& a, int64_t element_bytes) {
  int64_t channels = a.channels1 + a.channels2, group = channels / a.groups;
  int64_t line = 64 / element_bytes, unit = group;
  while (unit % line != 0 && unit < channels) unit += group;
  int64_t threads = num_threads();
  int64_t blocks = a.samples % threads == 0 || a.samples >= 8 * threads ? 1 : threads;
  int64_t units = (channels + unit - 1) / unit;
  int64_t block = (units + blocks - 1) / blocks * unit;
  return block < channels ? block : channels;
}

// How far ahead a work item's place lies in the next one; 0 where that would push this one out.
inline int64_t next_item(const AdaGroupNormArgs& a, const Segment& part, int64_t block) {
  if (block * a.pixels > kCache / 2) return 0;
  return block < a.channels1 + a.channels2 ? block : part.stride * a.pixels;
}

// Work items a thread should take at the least: waking one costs as much as some 10000 elements.
inline int64_t grain(int64_t elements) {
  constexpr int64_t kElements = 8192;
  return elements < kElements ? kElements / (elements > 0 ? elements : 1) : 1;
}

// Whether the backward pass writes past the caches: where its tensors push each other out, and
// whole vectors can be written.
template <typename T>
bool should_stream(const AdaGroupNormBackwardArgs& b) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t bytes = a.samples * (a.channels1 + a.channels2) * a.pixels * int64_t(sizeof(T));
  const int64_t row = a.channels_last ? a.channels1 | a.channels2 : a.pixels;
  const auto places =
      reinterpret_cast<uintptr_t>(b.grad_x) | reinterpret_cast<uintptr_t>(b.grad_x2);
  return row % 16 == 0 && places % 64 == 0 && worth_streaming(3 * bytes);
}

}  // namespace
}  // namespace lddgan::LDDGAN_ISA
