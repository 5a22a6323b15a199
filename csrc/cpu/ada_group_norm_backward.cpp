// Backward, from x and (mean, rstd). With d = x + bias - mean, u = scale rstd d + shift and
// v = grad_out act'(u), per channel: grad_shift = sum v, grad_scale = rstd sum v d; and
// grad_x = scale rstd v - rstd (k1 + rstd^2 k2 d), k1 and k2 the group's means of scale v and
// scale v d. The first pass keeps v as float: in grad_x itself if that is float and not
// streamed past the caches, else beside.
#include "ada_group_norm.h"

namespace lddgan::LDDGAN_ISA {
namespace {

// v[k] = grad[k] act'(u[k])
template <typename T, bool kSilu, int count>
LDDGAN_INLINE void before_activation(const Vec (&u)[count], Vec (&v)[count]) {
  if constexpr (kSilu) {
    Vec s[count];
    sigmoid<T>(u, s);
    for (int k = 0; k < count; ++k) v[k] *= s[k] * (u[k] - u[k] * s[k]) + s[k];
  }
}

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
                                      constexpr int kLine = 64 / sizeof(T);
                                      for (int k = 0; k < kCount * kWidth; k += kLine) {
                                        __builtin_prefetch(x + part + j + k + ahead, 0, 2);
                                        __builtin_prefetch(grad + part + j + k + ahead, 0, 2);
                                      }
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
void backward_channels_last(const AdaGroupNormBackwardArgs& b, int64_t block, int64_t begin,
                            int64_t end) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2, pixels = a.pixels;
  const int64_t size = channels / a.groups, blocks = (channels + block - 1) / block;
  constexpr bool kInPlace = sizeof(T) == 4;
  Workspace workspace(13 * Workspace::padded(block) +
                      (kInPlace ? 0 : Workspace::padded(block * pixels)));
  float* scale = workspace.take(block);
  float* shift = workspace.take(block);
  float* q = workspace.take(block);     // mean - bias
  float* gain = workspace.take(block);  // scale * rstd
  float* grad_scale = workspace.take(block);
  float* grad_shift = workspace.take(block);
  float* grad_bias = workspace.take(block);
  float* mean1 = workspace.take(block);
  float* mean2 = workspace.take(block);
  float* sum_v = workspace.take(block);
  float* sum_vd = workspace.take(block);
  float* lost_v = workspace.take(block);
  float* lost_vd = workspace.take(block);
  float* beside = kInPlace ? nullptr : workspace.take(block * pixels);
  const T* sources[2] = {static_cast<const T*>(a.x), static_cast<const T*>(a.x2)};
  T* grads[2] = {static_cast<T*>(b.grad_x), static_cast<T*>(b.grad_x2)};
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, first = item % blocks * block;
    const int64_t last = first + block < channels ? first + block : channels;
    Segment parts[2];
    const int num_parts = segments(a, n, first, last, parts);
    read_row(a.scale, n, first, last, scale);
    read_row(a.shift, n, first, last, shift);
    read_bias(a, n, first, last, q);
    for (int64_t c = 0; c < last - first; c += size) {
      const int64_t group = n * a.groups + (first + c) / size;
      for (int64_t i = c; i < c + size; ++i) {
        q[i] = a.mean[group] - q[i];
        gain[i] = scale[i] * a.rstd[group];
      }
    }
    auto kept = [&](const Segment& part, int64_t r) {
      if constexpr (kInPlace) return grads[part.second] + part.offset + r * part.stride;
      return beside + r * (last - first) + part.channel - first;
    };

    float* const zeroed1[] = {sum_v, sum_vd, grad_shift, lost_v, grad_scale, lost_vd};
    for (float* sums : zeroed1) {
      fill_zero(sums, last - first);
    }
    const T* g = static_cast<const T*>(b.grad_out) + n * pixels * channels;
    for (int64_t r = 0; r < pixels; ++r) {
      for (int k = 0; k < num_parts; ++k) {
        const T* x = sources[parts[k].second] + parts[k].offset + r * parts[k].stride;
        const T* grad = g + r * channels + parts[k].channel;
        float* v = kept(parts[k], r);
        const int64_t from = parts[k].channel - first;
        for_vectors<kBackwardBlock>(parts[k].count, [&](int64_t i, auto lanes) {
          constexpr int kCount = kVectorsOf<decltype(lanes)>;
          Vec d[kCount], u[kCount], value[kCount];
          for (int m = 0; m < kCount; ++m) {
            const int64_t j = from + i + m * kWidth;
            d[m] = load(x + i + m * kWidth, lanes) - load(q + j);
            u[m] = d[m] * load(gain + j) + load(shift + j);
            value[m] = load(grad + i + m * kWidth, lanes);
          }
          before_activation<T, kSilu>(u, value);
          for (int m = 0; m < kCount; ++m) {
            const int64_t j = from + i + m * kWidth;
            store(v + i + m * kWidth, value[m], lanes);
            value[m] = keep_first(value[m], lanes);
            store(sum_v + j, load(sum_v + j) + value[m]);
            store(sum_vd + j, load(sum_vd + j) + keep_first(value[m] * d[m], lanes));
          }
        });
      }
      if (r % kPart == kPart - 1 || r == pixels - 1) {
        add_part(grad_shift, lost_v, sum_v, last - first);
        add_part(grad_scale, lost_vd, sum_vd, last - first);
      }
    }
    const float count = float(size * pixels);
    for (int64_t c = 0; c < last - first; c += size) {
      const float rstd = a.rstd[n * a.groups + (first + c) / size];
      float k1 = 0, k2 = 0;
      for (int64_t i = c; i < c + size; ++i) {
        grad_shift[i] += lost_v[i];
        grad_scale[i] = (grad_scale[i] + lost_vd[i]) * rstd;
        k1 += scale[i] * grad_shift[i];
        k2 += scale[i] * grad_scale[i];
      }
      for (int64_t i = c; i < c + size; ++i) {
        mean1[i] = k1 / count * rstd;
        mean2[i] = k2 / count * rstd * rstd;
      }
    }

    float* const zeroed2[] = {sum_v, lost_v, grad_bias};
    for (float* sums : zeroed2) fill_zero(sums, last - first);
    for (int64_t r = 0; r < pixels; ++r) {
      for (int k = 0; k < num_parts; ++k) {
        const T* x = sources[parts[k].second] + parts[k].offset + r * parts[k].stride;
        T* grad_x = grads[parts[k].second] + parts[k].offset + r * parts[k].stride;
        const float* v = kept(parts[k], r);
        const int64_t from = parts[k].channel - first;
        for_vectors(parts[k].count, [&](int64_t i, auto lanes) {
          const int64_t j = from + i;
          Vec d = load(x + i, lanes) - load(q + j);
          Vec value = load(v + i, lanes) * load(gain + j) - (load(mean2 + j) * d + load(mean1 + j));
          store(grad_x + i, value, lanes);
          if (kBias) store(sum_v + j, load(sum_v + j) + keep_first(value, lanes));
        });
      }
      if (kBias && (r % kPart == kPart - 1 || r == pixels - 1)) {
        add_part(grad_bias, lost_v, sum_v, last - first);
      }
    }
    write_row(grad_scale, last - first, b.grad_scale, b.grad_scale_dtype, n * channels + first);
    write_row(grad_shift, last - first, b.grad_shift, b.grad_shift_dtype, n * channels + first);
    if (kBias && !parts[0].second) {
      for (int64_t i = 0; i < parts[0].count; ++i) grad_bias[i] += lost_v[i];
      write_row(grad_bias, parts[0].count, b.grad_bias, b.grad_bias_dtype, n * a.channels1 + first);
    }
  }
}

template <typename T, bool kSilu, bool kBias, bool kStream>
void backward(const AdaGroupNormBackwardArgs& b) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2;
  if (!a.channels_last) {
    parallel_for(a.samples * a.groups, grain(channels / a.groups * a.pixels),
                 [&](int64_t begin, int64_t end) {
                   backward_contiguous<T, kSilu, kBias, kStream>(b, begin, end);
                 });
    return;
  }
  const int64_t block = block_channels(a, sizeof(T));
  parallel_for(a.samples * ((channels + block - 1) / block), grain(block * a.pixels),
               [&](int64_t begin, int64_t end) {
                 backward_channels_last<T, kSilu, kBias>(b, block, begin, end);
               });
}

template <typename T, bool kSilu, bool kBias>
void backward(const AdaGroupNormBackwardArgs& b) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t bytes = a.samples * (a.channels1 + a.channels2) * a.pixels * int64_t(sizeof(T));
  const auto places =
      reinterpret_cast<uintptr_t>(b.grad_x) | reinterpret_cast<uintptr_t>(b.grad_x2);
  if (!a.channels_last && a.pixels % 16 == 0 && places % 64 == 0 && worth_streaming(3 * bytes)) {
    backward<T, kSilu, kBias, true>(b);
  } else {
    backward<T, kSilu, kBias, false>(b);
  }
}

}  // namespace

void ada_group_norm_backward(const AdaGroupNormBackwardArgs& b) {
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
