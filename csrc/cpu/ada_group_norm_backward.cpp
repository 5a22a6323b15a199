// Backward, from x and (mean, rstd). With d = x + bias - mean, u = scale rstd d + shift and
// v = grad_out act'(u), per channel: grad_shift = sum v, grad_scale = rstd sum v d; and
// grad_x = scale rstd v - rstd (k1 + rstd^2 k2 d), k1 and k2 the group's means of scale v and
// scale v d. The first pass keeps v as float: in grad_x itself if that is float and not
// streamed past the caches, else beside.
#include "ada_group_norm_common.h"

namespace lddgan::LDDGAN_ISA {
namespace {

// Elements a thread takes through both passes at once, so that the second finds them in the first
// cache; more of short rows, whose sums are worth taking together.
inline int64_t batch_elements(int64_t pixels) { return pixels < 256 ? 16384 : 2048; }

template <typename T, bool kSilu, bool kBias, bool kStream>
void backward_contiguous(const AdaGroupNormBackwardArgs& b, int64_t begin, int64_t end) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2, pixels = a.pixels;
  const int64_t size = channels / a.groups, batch = batch_groups(a, batch_elements(pixels));
  const int64_t most = batch * size, row_floats = (most + kWidth - 1) / kWidth * kWidth * kWidth;
  constexpr bool kInPlace = sizeof(T) == 4 && !kStream;
  Workspace workspace(3 * Workspace::padded(channels) + 3 * Workspace::padded(most) +
                      2 * Workspace::padded(row_floats) +
                      (kInPlace ? 0 : Workspace::padded(most * pixels)));
  float* scale = workspace.take(channels);
  float* shift = workspace.take(channels);
  float* bias = workspace.take(channels);
  float* grad_scale = workspace.take(most);
  float* grad_shift = workspace.take(most);
  float* grad_bias = workspace.take(most);
  float* rows_v = workspace.take(row_floats);
  float* rows_vd = workspace.take(row_floats);
  float* beside = kInPlace ? nullptr : workspace.take(most * pixels);
  for (int64_t item = begin, groups; item < end; item += groups) {
    const int64_t n = item / a.groups, group = item % a.groups, first = group * size;
    groups = a.groups - group < batch ? a.groups - group : batch;
    if (groups > end - item) groups = end - item;
    const int64_t ahead = item + groups < end ? groups * size * pixels : 0;
    if (item == begin || first == 0) {
      read_row(a.scale, n, 0, channels, scale);
      read_row(a.shift, n, 0, channels, shift);
      read_bias(a, n, 0, channels, bias);
    }
    const float *mean = a.mean + item, *rstd = a.rstd + item;
    const T* g = static_cast<const T*>(b.grad_out) + item * size * pixels;
    auto kept = [&](int64_t i) {
      if constexpr (kInPlace) return channel_row<float>(b.grad_x, b.grad_x2, a, n, first + i);
      return beside + i * pixels;
    };
    for (int64_t i = 0; i < groups * size; ++i) {
      const T *x = channel_row<const T>(a.x, a.x2, a, n, first + i), *grad = g + i * pixels;
      float* v = kept(i);
      const Vec q = broadcast(mean[i / size] - bias[first + i]),
                gain = broadcast(scale[first + i] * rstd[i / size]),
                add = broadcast(shift[first + i]);
      Vec total_v = {}, total_vd = {}, lost_v = {}, lost_vd = {};
      for (int64_t part = 0; part < pixels; part += kPart * kWidth) {
        Vec sum_v = {}, sum_vd = {};
        const int64_t rest = pixels - part;
        for_vectors<kBackwardBlock>(rest < kPart * kWidth ? rest : kPart * kWidth,
                                    [&](int64_t j, auto lanes) {
                                      constexpr int kCount = kVectorsOf<decltype(lanes)>;
                                      prefetch<decltype(lanes)>(x + part + j + ahead);
                                      prefetch<decltype(lanes)>(grad + part + j + ahead);
                                      Vec d[kCount], u[kCount], value[kCount];
                                      for (int k = 0; k < kCount; ++k) {
                                        d[k] = load(x + part + j + k * kWidth, lanes) - q;
                                        u[k] = d[k] * gain + add;
                                        value[k] = load(grad + part + j + k * kWidth, lanes);
                                      }
                                      before_activation<T, kSilu>(u, value);
                                      for (int k = 0; k < kCount; ++k) {
                                        store(v + part + j + k * kWidth, value[k], lanes);
                                        sum_v += value[k];
                                        sum_vd += value[k] * d[k];
                                      }
                                    });
        if (part == 0) {
          total_v = sum_v, total_vd = sum_vd;
        } else {
          add_part(total_v, lost_v, sum_v);
          add_part(total_vd, lost_vd, sum_vd);
        }
      }
      store(rows_v + i * kWidth, total_v + lost_v);
      store(rows_vd + i * kWidth, total_vd + lost_vd);
    }
    sum_rows(rows_v, groups * size, grad_shift);
    sum_rows(rows_vd, groups * size, grad_scale);
    for (int64_t h = 0; h < groups; ++h) {
      float k1 = 0, k2 = 0;
      for (int64_t i = h * size; i < (h + 1) * size; ++i) {
        grad_scale[i] *= rstd[h];
        k1 += scale[first + i] * grad_shift[i];
        k2 += scale[first + i] * grad_scale[i];
      }
      const float count = float(size * pixels);
      const Vec mean1 = broadcast(k1 / count * rstd[h]),
                mean2 = broadcast(k2 / count * rstd[h] * rstd[h]);
      for (int64_t i = h * size; i < (h + 1) * size; ++i) {
        const T* x = channel_row<const T>(a.x, a.x2, a, n, first + i);
        T* grad_x = channel_row<T>(b.grad_x, b.grad_x2, a, n, first + i);
        const float* v = kept(i);
        const Vec q = broadcast(mean[h] - bias[first + i]),
                  gain = broadcast(scale[first + i] * rstd[h]);
        Vec total = {}, lost = {};
        for (int64_t part = 0; part < pixels; part += kPart * kWidth) {
          Vec sum_x = {};
          const int64_t rest = pixels - part;
          for_vectors(rest < kPart * kWidth ? rest : kPart * kWidth, [&](int64_t j, auto lanes) {
            Vec d = load(x + part + j, lanes) - q;
            Vec value = load(v + part + j, lanes) * gain - (mean2 * d + mean1);
            if constexpr (kStream) {
              store_stream(grad_x + part + j, value);
            } else {
              store(grad_x + part + j, value, lanes);
            }
            if (kBias) sum_x += keep_first(value, lanes);
          });
          if (kBias) add_part(total, lost, sum_x);
        }
        if (kBias) store(rows_v + i * kWidth, total + lost);
      }
    }
    if (kStream) stream_fence();
    write_row(grad_scale, groups * size, b.grad_scale, b.grad_scale_dtype, n * channels + first);
    write_row(grad_shift, groups * size, b.grad_shift, b.grad_shift_dtype, n * channels + first);
    if (kBias && first < a.channels1) {
      const int64_t count =
          a.channels1 - first < groups * size ? a.channels1 - first : groups * size;
      sum_rows(rows_v, count, grad_bias);
      write_row(grad_bias, count, b.grad_bias, b.grad_bias_dtype, n * a.channels1 + first);
    }
  }
}

template <typename T, bool kSilu, bool kBias>
void backward(const AdaGroupNormBackwardArgs& b) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2;
  const bool stream = should_stream<T>(b);
  parallel_for(a.samples * a.groups, grain(channels / a.groups * a.pixels),
               [&](int64_t begin, int64_t end) {
                 stream ? backward_contiguous<T, kSilu, kBias, true>(b, begin, end)
                        : backward_contiguous<T, kSilu, kBias, false>(b, begin, end);
               });
}

}  // namespace

void ada_group_norm_backward(const AdaGroupNormBackwardArgs& b) {
  if (b.forward.channels_last) return ada_group_norm_backward_channels_last(b);
  visit(b.forward.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool bias = b.grad_bias != nullptr;
    if (b.forward.silu) {
      bias ? backward<T, true, true>(b) : backward<T, true, false>(b);
    } else {
      bias ? backward<T, false, true>(b) : backward<T, false, false>(b);
    }
  });
}

}  // namespace lddgan::LDDGAN_ISA
