#include "bias_act.h"

#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr float kSlope = 0.2f;
constexpr float kGone = -87.0f;    // below, a sigmoid is zero; -inf times it is NaN, as in PyTorch
constexpr int64_t kGrain = 16384;  // elements a thread
constexpr int64_t kRun = 32 * kWidth;  // elements summed before their sum joins the total
constexpr int64_t kRunOfRows = 8;      // likewise, where channels are innermost

template <bool kSilu>
LDDGAN_INLINE Vec activate(Vec u) {
  if constexpr (kSilu) {
    return select(u < broadcast(kGone), u * 0.0f, silu(u));
  } else {
    return max(u, u * kSlope);
  }
}

template <bool kSilu>
LDDGAN_INLINE Vec derivative(Vec u) {
  if constexpr (kSilu) {
    Vec s = select(u < broadcast(kGone), Vec{}, sigmoid(u));
    return s + s * u * (1.0f - s);  // rounded once where u is small
  } else {
    return select(u > Vec{}, broadcast(1), broadcast(kSlope));
  }
}

// f(index, count) over a row: whole vectors first, then the rest with count < kWidth.
template <typename F>
LDDGAN_INLINE void each_vector(int64_t length, const F& f) {
  int64_t i = 0;
  for (; i + kWidth <= length; i += kWidth) f(i, kWidth);
  if (i < length) f(i, int(length - i));
}

template <typename T, bool kSilu>
void forward(const BiasActArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  T* out = static_cast<T*>(a.out);
  int64_t rows = a.innermost ? a.images * a.plane : a.images * a.channels;
  int64_t length = a.innermost ? a.channels : a.plane;
  parallel_for(rows, kGrain / length + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + row * length;
      T* to = out + row * length;
      if (a.innermost) {
        each_vector(length, [&](int64_t i, int count) {
          Vec u = load_up_to(from + i, count) + load_up_to(a.bias + i, count);
          store_up_to(to + i, activate<kSilu>(u), count);
        });
      } else {
        Vec bias = broadcast(a.bias[row % a.channels]);
        each_vector(length, [&](int64_t i, int count) {
          store_up_to(to + i, activate<kSilu>(load_up_to(from + i, count) + bias), count);
        });
      }
    }
  });
}

// One row of one channel; returns the sum of its gradients.
template <typename T, bool kSilu>
float backward_row(const T* grad, const T* x, T* grad_x, float bias, int64_t length) {
  Vec total{};
  for (int64_t first = 0; first < length; first += kRun) {
    int64_t run = length - first < kRun ? length - first : kRun;
    Vec sum{};
    each_vector(run, [&](int64_t i, int count) {
      Vec u = load_up_to(x + first + i, count) + bias;
      Vec g = load_up_to(grad + first + i, count) * derivative<kSilu>(u);  // 0 past the end
      store_up_to(grad_x + first + i, g, count);
      sum += g;
    });
    total += sum;
  }
  return sum(total);
}

template <typename T, bool kSilu>
void backward(const BiasActBackwardArgs& a) {
  const T* grad = static_cast<const T*>(a.grad);
  const T* x = static_cast<const T*>(a.x);
  T* grad_x = static_cast<T*>(a.grad_x);
  const int64_t chunks = bias_act_chunks(a.images, a.plane, a.innermost);
  if (a.innermost) {
    int64_t rows = a.images * a.plane, length = a.channels;
    int64_t grain = kGrain / (kBiasActRows * length) + 1;
    parallel_for(chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        int64_t first = chunk * kBiasActRows;
        int64_t last = first + kBiasActRows < rows ? first + kBiasActRows : rows;
        float* sums = a.partial + chunk * length;
        // Column by column, so that the sum stays in a register.
        each_vector(length, [&](int64_t i, int count) {
          Vec bias = load_up_to(a.bias + i, count), total{}, sum{};
          for (int64_t row = first; row < last; ++row) {
            int64_t at = row * length + i;
            Vec u = load_up_to(x + at, count) + bias;
            Vec g = load_up_to(grad + at, count) * derivative<kSilu>(u);
            store_up_to(grad_x + at, g, count);
            sum += g;
            if ((row - first) % kRunOfRows == kRunOfRows - 1) {
              total += sum;
              sum = Vec{};
            }
          }
          store_up_to(sums + i, total + sum, count);
        });
      }
    });
  } else {
    parallel_for(a.images * a.channels, kGrain / a.plane + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int64_t at = row * a.plane;
        a.partial[row] = backward_row<T, kSilu>(grad + at, x + at, grad_x + at,
                                                a.bias[row % a.channels], a.plane);
      }
    });
  }
  for (int64_t c = 0; c < a.channels; ++c) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += a.partial[chunk * a.channels + c];
    a.grad_bias[c] = float(total);
  }
}

}  // namespace

void bias_act(const BiasActArgs& a) {
  if (a.images * a.channels * a.plane == 0) return;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    a.silu ? forward<T, true>(a) : forward<T, false>(a);
  });
}

void bias_act_backward(const BiasActBackwardArgs& a) {
  if (a.images * a.channels * a.plane == 0) {
    for (int64_t c = 0; c < a.channels; ++c) a.grad_bias[c] = 0;
    return;
  }
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    a.silu ? backward<T, true>(a) : backward<T, false>(a);
  });
}

}  // namespace lddgan::LDDGAN_ISA
