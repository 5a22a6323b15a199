#include "minibatch_stddev.h"

#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr float kEps = 1e-8f;
constexpr int64_t kGrain = 8192;  // elements a thread

// How a sample of x, and of the tensors with one channel more, is walked in rows.
struct Rows {
  int64_t count, length, wide_stride;  // row r starts at r * length, and at r * wide_stride
  int64_t sample, wide_sample;         // elements of a sample

  explicit Rows(const MinibatchStddevArgs& a)
      : count(minibatch_stddev_rows(a.channels, a.plane, a.channels_last)),
        length(a.channels_last ? a.channels : kStddevRow),
        wide_stride(a.channels_last ? a.channels + 1 : kStddevRow),
        sample(a.channels * a.plane),
        wide_sample((a.channels + 1) * a.plane) {}

  int64_t length_of(int64_t row) const {
    int64_t rest = sample - row * length;
    return rest < length ? rest : length;
  }
};

// A set's values at one vector of positions are x = first + rest: the mean is first + mean.
struct Moments {
  Vec first;  // the first member's values; differences from it are exact far from zero
  Vec mean;
  Vec std;
};

template <typename T>
LDDGAN_INLINE Moments moments(const T* x, int64_t stride, int64_t members, int count) {
  Vec first = load_up_to(x, count), mean{}, var{};
  const float share = 1.0f / float(members);
  for (int64_t m = 1; m < members; ++m) mean += load_up_to(x + m * stride, count) - first;
  mean *= share;
  for (int64_t m = 0; m < members; ++m) {
    Vec d = load_up_to(x + m * stride, count) - first - mean;
    var += d * d;
  }
  return {first, mean, sqrt(var * share + kEps)};
}

// The appended channel of one sample: f(element).
template <typename T, typename F>
void each_of_last_channel(const MinibatchStddevArgs& a, T* sample, const F& f) {
  int64_t stride = a.channels_last ? a.channels + 1 : 1;
  T* first = sample + (a.channels_last ? a.channels : a.channels * a.plane);
  for (int64_t p = 0; p < a.plane; ++p) f(first + p * stride);
}

template <typename T>
void forward(const MinibatchStddevArgs& a) {
  const Rows rows(a);
  const T* x = static_cast<const T*>(a.x);
  T* out = static_cast<T*>(a.out);
  const int64_t grain = kGrain / (rows.length * a.members) + 1;
  parallel_for(a.sets * rows.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t set = unit / rows.count, row = unit % rows.count, length = rows.length_of(row);
      const T* from = x + set * rows.sample + row * rows.length;
      T* to = out + set * rows.wide_sample + row * rows.wide_stride;
      Vec sums{}, lost{};  // Kahan's: many equal terms would round one way
      for (int64_t i = 0; i < length; i += kWidth) {
        int count = length - i < kWidth ? int(length - i) : kWidth;
        Vec std = moments(from + i, a.sets * rows.sample, a.members, count).std;
        if (count < kWidth) {
          float tail[kWidth] = {};
          store_tail(tail, std, count);
          std = load(tail);
        }
        Vec next = sums + std;
        lost += std - (next - sums);
        sums = next;
      }
      double total = 0;
      for (int i = 0; i < kWidth; ++i) total += double(sums[i]) + double(lost[i]);
      a.partial[unit] = total;
      for (int64_t m = 0; m < a.members; ++m) {
        std::memcpy(to + m * a.sets * rows.wide_sample, from + m * a.sets * rows.sample,
                    length * sizeof(T));
      }
    }
  });
  for (int64_t set = 0; set < a.sets; ++set) {
    double total = 0;
    for (int64_t row = 0; row < rows.count; ++row) total += a.partial[set * rows.count + row];
    float statistic = float(total / double(rows.sample));
    for (int64_t m = 0; m < a.members; ++m) {
      each_of_last_channel(a, out + (m * a.sets + set) * rows.wide_sample,
                           [&](T* p) { put(p, statistic); });
    }
  }
}

template <typename T>
void backward(const MinibatchStddevArgs& a) {
  const Rows rows(a);
  const T* x = static_cast<const T*>(a.x);
  const T* grad = static_cast<const T*>(a.grad);
  T* out = static_cast<T*>(a.out);
  // d statistic / d x = (x - mean) / (std * members * sample).
  for (int64_t set = 0; set < a.sets; ++set) {
    double total = 0;
    for (int64_t m = 0; m < a.members; ++m) {
      each_of_last_channel(a, grad + (m * a.sets + set) * rows.wide_sample,
                           [&](const T* p) { total += double(to_float(*p)); });
    }
    a.partial[set] = total / double(a.members * rows.sample);
  }
  const int64_t grain = kGrain / (rows.length * a.members) + 1;
  parallel_for(a.sets * rows.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      int64_t set = unit / rows.count, row = unit % rows.count, length = rows.length_of(row);
      int64_t start = set * rows.sample + row * rows.length;
      const T* above = grad + set * rows.wide_sample + row * rows.wide_stride;
      for (int64_t i = 0; i < length; i += kWidth) {
        int count = length - i < kWidth ? int(length - i) : kWidth;
        Moments at = moments(x + start + i, a.sets * rows.sample, a.members, count);
        Vec factor = float(a.partial[set]) / at.std;
        for (int64_t m = 0; m < a.members; ++m) {
          int64_t here = start + i + m * a.sets * rows.sample;
          Vec g = load_up_to(above + i + m * a.sets * rows.wide_sample, count);
          Vec centred = load_up_to(x + here, count) - at.first - at.mean;
          store_up_to(out + here, g + factor * centred, count);
        }
      }
    }
  });
}

}  // namespace

void minibatch_stddev(const MinibatchStddevArgs& a) {
  visit(a.dtype, [&](auto* type) { forward<std::remove_pointer_t<decltype(type)>>(a); });
}

void minibatch_stddev_backward(const MinibatchStddevArgs& a) {
  visit(a.dtype, [&](auto* type) { backward<std::remove_pointer_t<decltype(type)>>(a); });
}

}  // namespace lddgan::LDDGAN_ISA
