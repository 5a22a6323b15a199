// Backward, from x and (mean, rstd). With d = x + bias - mean, u = scale rstd d + shift and
// v = grad_out act'(u), per channel: grad_shift = sum v, grad_scale = rstd sum v d; and
// grad_x = scale rstd v - rstd (k1 + rstd^2 k2 d), k1 and k2 the group's means of scale v and
// scale v d. The first pass keeps v as float: in grad_x itself, or beside it for 16-bit types.
#include "ada_group_norm.h"

namespace lddgan::LDDGAN_ISA {
namespace {

template <typename T, bool kSilu>
LDDGAN_INLINE Vec gradient_of_activation(Vec u, Vec grad) {
  if (!kSilu) return grad;
  Vec s = sigmoid_for<T>(u);
  return grad * (s * (u - u * s) + s);
}

template <typename T, bool kSilu, bool kBias>
void backward_contiguous(const AdaGroupNormBackwardArgs& b, int64_t begin, int64_t end) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2, pixels = a.pixels;
  const int64_t size = channels / a.groups;
  constexpr bool kInPlace = sizeof(T) == 4;
  Workspace workspace(3 * Workspace::padded(channels) + 3 * Workspace::padded(size) +
                      (kInPlace ? 0 : Workspace::padded(size * pixels)));
  float* scale = workspace.take(channels);
  float* shift = workspace.take(channels);
  float* bias = workspace.take(channels);
  float* grad_scale = workspace.take(size);
  float* grad_shift = workspace.take(size);
  float* grad_bias = workspace.take(size);
  float* beside = kInPlace ? nullptr : workspace.take(size * pixels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / a.groups, first = item % a.groups * size;
    if (item == begin || first == 0) {
      read_row(a.scale, n, 0, channels, scale);
      read_row(a.shift, n, 0, channels, shift);
      read_bias(a, n, 0, channels, bias);
    }
    const float mean = a.mean[item], rstd = a.rstd[item];
    auto kept = [&](int64_t c) {
      if constexpr (kInPlace) return channel_row<float>(b.grad_x, b.grad_x2, a, n, c);
      return beside + (c - first) * pixels;
    };
    float k1 = 0, k2 = 0;
    for (int64_t c = first; c < first + size; ++c) {
      const T* x = channel_row<const T>(a.x, a.x2, a, n, c);
      const T* g = static_cast<const T*>(b.grad_out) + (n * channels + c) * pixels;
      float* v = kept(c);
      const Vec q = broadcast(mean - bias[c]), gain = broadcast(scale[c] * rstd),
                add = broadcast(shift[c]);
      Vec total_v = {}, total_vd = {}, lost_v = {}, lost_vd = {};
      for (int64_t part = 0; part < pixels; part += kPart * kWidth) {
        Vec sum_v = {}, sum_vd = {};
        const int64_t rest = pixels - part;
        for_vectors(rest < kPart * kWidth ? rest : kPart * kWidth, [&](int64_t j, auto lanes) {
          const int64_t i = part + j;
          Vec d = load(x + i, lanes) - q;
          Vec value = gradient_of_activation<T, kSilu>(d * gain + add, load(g + i, lanes));
          store(v + i, value, lanes);
          sum_v += value;
          sum_vd += value * d;
        });
        if (part == 0) {
          total_v = sum_v, total_vd = sum_vd;
        } else {
          add_part(total_v, lost_v, sum_v);
          add_part(total_vd, lost_vd, sum_vd);
        }
      }
      grad_shift[c - first] = sum(total_v + lost_v);
      grad_scale[c - first] = sum(total_vd + lost_vd) * rstd;
      k1 += scale[c] * grad_shift[c - first];
      k2 += scale[c] * grad_scale[c - first];
    }
    const float count = float(size * pixels);
    const T* g = static_cast<const T*>(b.grad_out) + item * size * pixels;
    const Vec mean1 = broadcast(k1 / count * rstd), mean2 = broadcast(k2 / count * rstd * rstd);
    for (int64_t c = first; c < first + size; ++c) {
      const T* x = channel_row<const T>(a.x, a.x2, a, n, c);
      T* grad_x = channel_row<T>(b.grad_x, b.grad_x2, a, n, c);
      const float* v = kept(c);
      const Vec q = broadcast(mean - bias[c]), gain = broadcast(scale[c] * rstd);
      Vec total = {}, lost = {};
      for (int64_t part = 0; part < pixels; part += kPart * kWidth) {
        Vec sum_x = {};
        const int64_t rest = pixels - part;
        for_vectors(rest < kPart * kWidth ? rest : kPart * kWidth, [&](int64_t j, auto lanes) {
          const int64_t i = part + j;
          // The next group.
          __builtin_prefetch(x + i + size * pixels, 0, 2);
          __builtin_prefetch(g + (c - first) * pixels + i + size * pixels, 0, 2);
          Vec d = load(x + i, lanes) - q;
          Vec value = load(v + i, lanes) * gain - (mean2 * d + mean1);
          store(grad_x + i, value, lanes);
          if (kBias) sum_x += keep_first(value, lanes);
        });
        if (kBias) add_part(total, lost, sum_x);
      }
      if (kBias) grad_bias[c - first] = sum(total + lost);
    }
    write_row(grad_scale, size, b.grad_scale, b.grad_scale_dtype, n * channels + first);
    write_row(grad_shift, size, b.grad_shift, b.grad_shift_dtype, n * channels + first);
    if (kBias && first < a.channels1) {
      const int64_t count1 = a.channels1 - first < size ? a.channels1 - first : size;
      write_row(grad_bias, count1, b.grad_bias, b.grad_bias_dtype, n * a.channels1 + first);
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
        for_vectors(parts[k].count, [&](int64_t i, auto lanes) {
          const int64_t j = from + i;
          Vec d = load(x + i, lanes) - load(q + j);
          Vec u = d * load(gain + j) + load(shift + j);
          Vec value = gradient_of_activation<T, kSilu>(u, load(grad + i, lanes));
          store(v + i, value, lanes);
          value = keep_first(value, lanes);
          store(sum_v + j, load(sum_v + j) + value);
          store(sum_vd + j, load(sum_vd + j) + keep_first(value * d, lanes));
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
        const T* grad_out = g + r * channels + parts[k].channel;
        // From here to the same place of the next work item.
        const int64_t ahead = blocks > 1 ? block : parts[k].stride * pixels;
        const float* v = kept(parts[k], r);
        const int64_t from = parts[k].channel - first;
        for_vectors(parts[k].count, [&](int64_t i, auto lanes) {
          const int64_t j = from + i;
          __builtin_prefetch(x + i + ahead, 0, 2);
          __builtin_prefetch(grad_out + i + ahead, 0, 2);
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

template <typename T, bool kSilu>
void backward(const AdaGroupNormBackwardArgs& b) {
  const AdaGroupNormArgs& a = b.forward;
  const int64_t channels = a.channels1 + a.channels2;
  if (!a.channels_last) {
    parallel_for(a.samples * a.groups, grain(channels / a.groups * a.pixels),
                 [&](int64_t begin, int64_t end) {
                   if (b.grad_bias != nullptr) {
                     backward_contiguous<T, kSilu, true>(b, begin, end);
                   } else {
                     backward_contiguous<T, kSilu, false>(b, begin, end);
                   }
                 });
    return;
  }
  const int64_t block = block_channels(a, sizeof(T), 1 << 24);
  parallel_for(a.samples * ((channels + block - 1) / block), grain(block * a.pixels),
               [&](int64_t begin, int64_t end) {
                 if (b.grad_bias != nullptr) {
                   backward_channels_last<T, kSilu, true>(b, block, begin, end);
                 } else {
                   backward_channels_last<T, kSilu, false>(b, block, begin, end);
                 }
               });
}

}  // namespace

void ada_group_norm_backward(const AdaGroupNormBackwardArgs& b) {
  visit(b.forward.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (b.forward.silu) {
      backward<T, true>(b);
    } else {
      backward<T, false>(b);
    }
  });
}

}  // namespace lddgan::LDDGAN_ISA
