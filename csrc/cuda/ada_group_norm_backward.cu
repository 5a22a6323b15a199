// Adaptive group norm, backward; x_hat is recomputed from x and the saved moments.
//
// Per sample and channel it needs the sums of g * x_hat, g and x_hat (g: the gradient before the
// activation). The first two are grad_scale and grad_shift; with them
//   grad_x = rstd * (scale * g - mean(scale * g) - x_hat * mean(scale * g * x_hat)),
// means over the group. No atomics: every sum has one writer, so runs repeat bit for bit.
#include "ada_group_norm.cuh"

namespace lddgan {

namespace {

// Moments of the tile's groups into shared memory: [2][groups]; no barrier.
__device__ __forceinline__ void load_moments(const AdaGroupNormArgs& a, const NormTile& t,
                                             float* moments) {
  for (int g = threadIdx.x; g < t.groups; g += blockDim.x) {
    int64_t i = t.sample * a.groups + t.first_group + g;
    moments[g] = a.mean[i];
    moments[t.groups + g] = a.rstd[i];
  }
}

// x_hat, and the gradient before the activation.
struct NormGradient {
  float x_hat, grad;
};

__device__ __forceinline__ NormGradient element(const AdaGroupNormArgs& a, const NormTile& t,
                                                const float* rows, const float* moments, int c,
                                                float x, float grad) {
  int g = c / t.cpg;
  float x_hat = (x + rows[2 * t.channels + c] - moments[g]) * moments[t.groups + g];
  if (a.silu) {
    float y = x_hat * rows[c] + rows[t.channels + c];
    float s = sigmoid(y);
    grad *= s * (1.0f + y * (1.0f - s));
  }
  return {x_hat, grad};
}

template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormPack<T, VEC> read_grad(const AdaGroupNormBackwardArgs& b,
                                                      const NormTile& t, int channel,
                                                      int position) {
  const AdaGroupNormArgs& a = b.forward;
  const T* p = static_cast<const T*>(b.grad_out) +
               image_offset<CHANNELS_LAST>(t.sample, a.channels1 + a.channels2, a.pixels,
                                           t.first_channel + channel, position);
  return *reinterpret_cast<const NormPack<T, VEC>*>(p);
}

template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ void add_sums(const AdaGroupNormArgs& a, const NormTile& t,
                                         const float* rows, const float* moments, int channel,
                                         const NormPack<T, VEC>& x, const NormPack<T, VEC>& grad,
                                         float* sums) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
#pragma unroll
  for (int e = 0; e < VEC; ++e) {
    int i = CHANNELS_LAST ? e : 0;
    NormGradient v = element(a, t, rows, moments, channel + i, device_float(x.data[e]),
                             device_float(grad.data[e]));
    sums[i] += v.grad * v.x_hat;
    sums[kWidth + i] += v.grad;
    sums[2 * kWidth + i] += v.x_hat;
  }
}

// From the sums of all positions (per channel, [3][channels]): the group means [2][groups], and, by
// the first part's block, the gradients of scale, shift and bias. Ends with a barrier.
__device__ __forceinline__ void finish_sums(const AdaGroupNormBackwardArgs& b, const NormTile& t,
                                            const float* rows, const float* moments,
                                            const float* sums, float* means) {
  const AdaGroupNormArgs& a = b.forward;
  const float count = float(t.cpg) * float(a.pixels);
  for (int i = threadIdx.x; i < 2 * t.groups; i += blockDim.x) {
    int k = i / t.groups, g = i % t.groups;  // k = 0: of scale * g * x_hat, 1: of scale * g
    float total = 0;
    for (int c = g * t.cpg; c < (g + 1) * t.cpg; ++c) total += rows[c] * sums[k * t.channels + c];
    means[i] = total / count;
  }
  __syncthreads();
  if (t.part != 0) return;
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    int64_t i = t.sample * (a.channels1 + a.channels2) + t.first_channel + c;
    write_value(b.grad_scale, b.grad_scale_dtype, i, sums[c]);
    write_value(b.grad_shift, b.grad_shift_dtype, i, sums[t.channels + c]);
    if (b.grad_bias != nullptr && t.first_channel + c < a.channels1) {
      int g = c / t.cpg;
      float value = rows[c] * sums[t.channels + c] - means[t.groups + g] * float(a.pixels) -
                    means[g] * sums[2 * t.channels + c];
      write_value(b.grad_bias, b.grad_bias_dtype, t.sample * a.channels1 + t.first_channel + c,
                  value * moments[t.groups + g]);
    }
  }
}

template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ void write_grad(const AdaGroupNormBackwardArgs& b, const NormTile& t,
                                           const float* rows, const float* moments,
                                           const float* means, int channel, int position,
                                           const NormPack<T, VEC>& x,
                                           const NormPack<T, VEC>& grad) {
  const AdaGroupNormArgs& a = b.forward;
  NormPack<T, VEC> out;
#pragma unroll
  for (int e = 0; e < VEC; ++e) {
    int c = CHANNELS_LAST ? channel + e : channel, g = c / t.cpg;
    NormGradient v =
        element(a, t, rows, moments, c, device_float(x.data[e]), device_float(grad.data[e]));
    out.data[e] = from_float<T>(moments[t.groups + g] *
                                (rows[c] * v.grad - means[t.groups + g] - v.x_hat * means[g]));
  }
  int c = t.first_channel + channel;
  T* p;
  if (c < a.channels1) {
    p = static_cast<T*>(b.grad_x) +
        image_offset<CHANNELS_LAST>(t.sample, a.channels1, a.pixels, c, position);
  } else {
    p = static_cast<T*>(b.grad_x2) + image_offset<CHANNELS_LAST>(t.sample, a.channels2, a.pixels,
                                                                 c - int(a.channels1), position);
  }
  *reinterpret_cast<NormPack<T, VEC>*>(p) = out;
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 1)
    backward_onchip_kernel(AdaGroupNormBackwardArgs b, int groups, int parts, int scratch_floats) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* scratch = shared;
  float* rows = scratch + scratch_floats;    // [3][channels]
  float* sums = rows + 3 * t.channels;       // [3][channels], read by the cluster
  float* totals = sums + 3 * t.channels;     // [3][channels]
  float* moments = totals + 3 * t.channels;  // [2][groups]
  float* means = moments + 2 * t.groups;     // [2][groups]
  int used = scratch_floats + 9 * t.channels + 4 * t.groups;
  auto* x_cache = reinterpret_cast<NormPack<T, VEC>*>(shared + (used + 3) / 4 * 4);
  auto* grad_cache =
      x_cache + t.channels * min(norm_part_size(a.pixels, parts), int(a.pixels)) / VEC;
  load_rows(a, t, rows);
  load_moments(a, t, moments);
  __syncthreads();
  column_sums<3, VEC, CHANNELS_LAST>(
      t, scratch, sums, [&](int channel, int position, int i, float* column) {
        NormPack<T, VEC> x = read_source<T, VEC, CHANNELS_LAST>(a, t, channel, position);
        NormPack<T, VEC> grad = read_grad<T, VEC, CHANNELS_LAST>(b, t, channel, position);
        x_cache[i] = x;
        grad_cache[i] = grad;
        add_sums<T, VEC, CHANNELS_LAST>(a, t, rows, moments, channel, x, grad, column);
      });
  cluster_sums(sums, totals, 3 * t.channels, parts);
  finish_sums(b, t, rows, moments, totals, means);
  each_pack<VEC, CHANNELS_LAST>(t, [&](int channel, int position, int i) {
    write_grad<T, VEC, CHANNELS_LAST>(b, t, rows, moments, means, channel, position, x_cache[i],
                                      grad_cache[i]);
  });
}

// One part's sums: workspace[((k * samples + sample) * channels + channel) * parts + part].
template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 1)
    sums_kernel(AdaGroupNormBackwardArgs b, float* workspace, int groups, int parts,
                int scratch_floats) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* scratch = shared;
  float* rows = scratch + scratch_floats;
  float* sums = rows + 3 * t.channels;
  float* moments = sums + 3 * t.channels;
  load_rows(a, t, rows);
  load_moments(a, t, moments);
  __syncthreads();
  column_sums<3, VEC, CHANNELS_LAST>(
      t, scratch, sums, [&](int channel, int position, int, float* column) {
        add_sums<T, VEC, CHANNELS_LAST>(a, t, rows, moments, channel,
                                        read_source<T, VEC, CHANNELS_LAST>(a, t, channel, position),
                                        read_grad<T, VEC, CHANNELS_LAST>(b, t, channel, position),
                                        column);
      });
  int64_t channels = a.channels1 + a.channels2;
  for (int i = threadIdx.x; i < 3 * t.channels; i += blockDim.x) {
    int64_t k = i / t.channels, c = t.first_channel + i % t.channels;
    workspace[((k * a.samples + t.sample) * channels + c) * parts + t.part] = sums[i];
  }
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 1)
    grad_kernel(AdaGroupNormBackwardArgs b, const float* __restrict__ workspace, int groups,
                int parts) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* rows = shared;
  float* sums = rows + 3 * t.channels;
  float* moments = sums + 3 * t.channels;
  float* means = moments + 2 * t.groups;
  load_rows(a, t, rows);
  load_moments(a, t, moments);
  int64_t channels = a.channels1 + a.channels2;
  for (int i = threadIdx.x; i < 3 * t.channels; i += blockDim.x) {
    int64_t k = i / t.channels, c = t.first_channel + i % t.channels;
    const float* p = workspace + ((k * a.samples + t.sample) * channels + c) * parts;
    float total = 0;
    for (int part = 0; part < parts; ++part) total += p[part];
    sums[i] = total;
  }
  __syncthreads();
  finish_sums(b, t, rows, moments, sums, means);
  each_pack<VEC, CHANNELS_LAST>(t, [&](int channel, int position, int) {
    write_grad<T, VEC, CHANNELS_LAST>(b, t, rows, moments, means, channel, position,
                                      read_source<T, VEC, CHANNELS_LAST>(a, t, channel, position),
                                      read_grad<T, VEC, CHANNELS_LAST>(b, t, channel, position));
  });
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_backward(const AdaGroupNormBackwardArgs& b, const AdaGroupNormPlan& plan,
                            void* stream) {
  const AdaGroupNormArgs& a = b.forward;
  int cpg = int((a.channels1 + a.channels2) / a.groups), channels = plan.groups * cpg;
  int64_t tile = channels * norm_held_pixels(a.pixels, plan.parts);
  int threads = norm_threads(tile / VEC);
  unsigned blocks = unsigned(a.samples * (a.groups / plan.groups) * plan.parts);
  int scratch = norm_sum_floats(3, threads, channels, VEC, CHANNELS_LAST);
  if (plan.onchip) {
    int floats = scratch + 9 * channels + 4 * plan.groups;
    size_t bytes = (floats + 3) / 4 * 16 + 2 * size_t(tile) * sizeof(T);
    return launch_kernel(backward_onchip_kernel<T, VEC, CHANNELS_LAST>, blocks, threads, bytes,
                         stream, unsigned(plan.parts), b, plan.groups, plan.parts, scratch);
  }
  cudaError_t error = launch_kernel(sums_kernel<T, VEC, CHANNELS_LAST>, blocks, threads,
                                    size_t(scratch + 6 * channels + 2 * plan.groups) * 4, stream, 1,
                                    b, plan.workspace, plan.groups, plan.parts, scratch);
  if (error != cudaSuccess) return error;
  return launch_kernel(grad_kernel<T, VEC, CHANNELS_LAST>, blocks, threads,
                       size_t(6 * channels + 4 * plan.groups) * 4, stream, 1, b, plan.workspace,
                       plan.groups, plan.parts);
}

}  // namespace

int ada_group_norm_backward_cuda(const AdaGroupNormBackwardArgs& b, const AdaGroupNormPlan& plan,
                                 void* stream) {
  AdaGroupNormArgs outputs = b.forward;  // the other pointers, asked the same question
  outputs.x = b.grad_x;
  outputs.x2 = b.grad_x2;
  outputs.out = const_cast<void*>(b.grad_out);
  return visit_packs(
      b.forward.dtype, b.forward.channels_last,
      [&](auto vec) {
        return norm_can_pack<vec()>(b.forward, plan.groups) &&
               norm_can_pack<vec()>(outputs, plan.groups);
      },
      [&](auto* type, auto vec, auto channels_last) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch_backward<T, vec(), channels_last()>(b, plan, stream);
      });
}

}  // namespace lddgan
