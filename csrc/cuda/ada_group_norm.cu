// Adaptive group norm, forward. See ada_group_norm.cuh for the tiles.
//
// "onchip": the block keeps its tile in shared memory between the statistics and the result, so x
// is read once; on sm_90 the blocks of a cluster cut H*W and add their sums through distributed
// shared memory. "split": a first kernel leaves each part's moments, a second merges them and
// applies.
#include "ada_group_norm.cuh"

namespace lddgan {

namespace {

// Applies (value - mean - missed) * scale + shift and the activation to a pack and stores it.
template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ void write_pack(const AdaGroupNormArgs& a, const NormTile& t,
                                           const NormPack<T, VEC>& pack, const float* rows,
                                           const float* moments, int channel, int position) {
  const float *scale = rows, *shift = rows + t.channels, *bias = rows + 2 * t.channels;
  const float *mean = moments, *missed = moments + t.groups, *rstd = moments + 2 * t.groups;
  NormPack<T, VEC> out;
#pragma unroll
  for (int e = 0; e < VEC; ++e) {
    int c = CHANNELS_LAST ? channel + e : channel;
    int g = c / t.cpg;
    float x = device_float(pack.data[e]) + bias[c];
    float y = ((x - mean[g]) - missed[g]) * (rstd[g] * scale[c]) + shift[c];
    if (a.silu) y *= sigmoid(y);
    out.data[e] = from_float<T>(y);
  }
  T* p = static_cast<T*>(a.out) + image_offset<CHANNELS_LAST>(t.sample, a.channels1 + a.channels2,
                                                              a.pixels, t.first_channel + channel,
                                                              position);
  *reinterpret_cast<NormPack<T, VEC>*>(p) = out;
}

__device__ __forceinline__ void store_moments(const AdaGroupNormArgs& a, const NormTile& t,
                                              const float* moments) {
  if (t.part != 0) return;
  for (int g = threadIdx.x; g < t.groups; g += blockDim.x) {
    int64_t i = t.sample * a.groups + t.first_group + g;
    a.mean[i] = moments[g] + moments[t.groups + g];
    a.rstd[i] = moments[2 * t.groups + g];
  }
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 1)
    forward_onchip_kernel(AdaGroupNormArgs a, int groups, int parts, int scratch_floats) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* scratch = shared;
  float* rows = scratch + scratch_floats;      // [3][channels]
  float* per_channel = rows + 3 * t.channels;  // [2][channels]
  float* own = per_channel + 2 * t.channels;   // [2][groups], read by the cluster
  float* totals = own + 2 * t.groups;          // [2][groups]
  float* moments = totals + 2 * t.groups;      // [3][groups]: mean, what it missed, rstd
  int used = scratch_floats + 5 * t.channels + 7 * t.groups;
  auto* cache = reinterpret_cast<NormPack<T, VEC>*>(shared + (used + 3) / 4 * 4);
  load_rows(a, t, rows);
  __syncthreads();
  const float* bias = rows + 2 * t.channels;
  const float count = float(t.cpg) * float(a.pixels);

  column_sums<1, VEC, CHANNELS_LAST>(
      t, scratch, per_channel, [&](int channel, int position, int i, float* sums) {
        NormPack<T, VEC> pack = read_source<T, VEC, CHANNELS_LAST>(a, t, channel, position);
        cache[i] = pack;
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
          int c = CHANNELS_LAST ? channel + e : channel;
          sums[CHANNELS_LAST ? e : 0] += device_float(pack.data[e]) + bias[c];
        }
      });
  group_sums<1>(t, per_channel, own);
  cluster_sums(own, totals, t.groups, parts);
  for (int g = threadIdx.x; g < t.groups; g += blockDim.x) moments[g] = totals[g] / count;
  __syncthreads();
  // Around the rounded mean: the deviations add up to what it missed, far from zero too.
  column_sums<2, VEC, CHANNELS_LAST>(
      t, scratch, per_channel, [&](int channel, int, int i, float* sums) {
        NormPack<T, VEC> pack = cache[i];
        constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
          int c = CHANNELS_LAST ? channel + e : channel;
          float away = device_float(pack.data[e]) + bias[c] - moments[c / t.cpg];
          sums[CHANNELS_LAST ? e : 0] += away;
          sums[kWidth + (CHANNELS_LAST ? e : 0)] += away * away;
        }
      });
  group_sums<2>(t, per_channel, own);
  cluster_sums(own, totals, 2 * t.groups, parts);
  for (int g = threadIdx.x; g < t.groups; g += blockDim.x) {
    float missed = totals[g] / count;
    float variance = totals[t.groups + g] / count - missed * missed;
    moments[t.groups + g] = missed;
    moments[2 * t.groups + g] = rsqrtf(fmaxf(variance, 0.0f) + a.eps);
  }
  __syncthreads();
  store_moments(a, t, moments);
  each_pack<VEC, CHANNELS_LAST>(t, [&](int channel, int position, int i) {
    write_pack<T, VEC, CHANNELS_LAST>(a, t, cache[i], rows, moments, channel, position);
  });
}

// Moments of one part: partial[(sample * groups + group) * parts + part] = (mean, squared
// deviations).
template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 1)
    moments_kernel(AdaGroupNormArgs a, float* partial, int groups, int parts, int scratch_floats) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* scratch = shared;
  float* bias = scratch + scratch_floats;
  float* per_channel = bias + t.channels;     // [2][channels]
  float* own = per_channel + 2 * t.channels;  // [2][groups]
  float* pivot = own + 2 * t.groups;  // [groups]: a value of the group, to stay near its mean
  load_bias(a, t, bias);
  __syncthreads();
  for (int g = threadIdx.x; g < t.groups; g += blockDim.x) {
    int channel = g * t.cpg;
    float value = 0;
    if (t.begin < t.end) {
      value = device_float(read_source<T, 1, CHANNELS_LAST>(a, t, channel, t.begin).data[0]) +
              bias[channel];
    }
    pivot[g] = value;
  }
  __syncthreads();
  const float count = float(t.cpg) * float(t.end - t.begin);
  // Twice over the part (the second time from L2): first the mean, then the deviations from it.
  for (int pass = 0; pass < 2; ++pass) {
    column_sums<2, VEC, CHANNELS_LAST>(
        t, scratch, per_channel, [&](int channel, int position, int, float* sums) {
          NormPack<T, VEC> pack = read_source<T, VEC, CHANNELS_LAST>(a, t, channel, position);
          constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
#pragma unroll
          for (int e = 0; e < VEC; ++e) {
            int c = CHANNELS_LAST ? channel + e : channel;
            float away = device_float(pack.data[e]) + bias[c] - pivot[c / t.cpg];
            sums[CHANNELS_LAST ? e : 0] += away;
            sums[kWidth + (CHANNELS_LAST ? e : 0)] += away * away;
          }
        });
    group_sums<2>(t, per_channel, own);
    for (int g = threadIdx.x; g < t.groups && t.begin < t.end; g += blockDim.x) {
      float missed = own[g] / count;
      if (pass == 1) own[t.groups + g] -= missed * own[g];
      pivot[g] += missed;
    }
    __syncthreads();
  }
  for (int g = threadIdx.x; g < t.groups; g += blockDim.x) {
    int64_t i = ((t.sample * a.groups + t.first_group + g) * parts + t.part) * 2;
    partial[i] = pivot[g];
    partial[i + 1] = own[t.groups + g];
  }
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 1)
    apply_kernel(AdaGroupNormArgs a, const float* __restrict__ partial, int groups, int parts) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* rows = shared;
  float* moments = rows + 3 * t.channels;
  load_rows(a, t, rows);
  merge_parts(partial + t.sample * a.groups * parts * 2, t.first_group, t.groups, t.cpg, a.pixels,
              parts, a.eps, moments);
  __syncthreads();
  store_moments(a, t, moments);
  each_pack<VEC, CHANNELS_LAST>(t, [&](int channel, int position, int) {
    write_pack<T, VEC, CHANNELS_LAST>(a, t,
                                      read_source<T, VEC, CHANNELS_LAST>(a, t, channel, position),
                                      rows, moments, channel, position);
  });
}

// How the blocks of a plan are launched.
struct NormLaunch {
  unsigned blocks;
  int threads, channels, scratch;
};

template <int VEC, bool CHANNELS_LAST>
NormLaunch norm_launch(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan) {
  int channels = plan.groups * int((a.channels1 + a.channels2) / a.groups);
  int threads = norm_threads(channels * norm_held_pixels(a.pixels, plan.parts) / VEC);
  return {unsigned(a.samples * (a.groups / plan.groups) * plan.parts), threads, channels,
          norm_sum_floats(2, threads, channels, VEC, CHANNELS_LAST)};
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_moments(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  NormLaunch n = norm_launch<VEC, CHANNELS_LAST>(a, plan);
  return launch_kernel(moments_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                       size_t(n.scratch + 3 * n.channels + 3 * plan.groups) * 4, stream, 1, a,
                       plan.workspace, plan.groups, plan.parts, n.scratch);
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_apply(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  NormLaunch n = norm_launch<VEC, CHANNELS_LAST>(a, plan);
  return launch_kernel(apply_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                       size_t(3 * n.channels + 3 * plan.groups) * 4, stream, 1, a, plan.workspace,
                       plan.groups, plan.parts);
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_forward(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  NormLaunch n = norm_launch<VEC, CHANNELS_LAST>(a, plan);
  if (plan.onchip) {
    int floats = n.scratch + 5 * n.channels + 7 * plan.groups;
    size_t bytes = (floats + 3) / 4 * 16 +
                   size_t(n.channels) * norm_held_pixels(a.pixels, plan.parts) * sizeof(T);
    return launch_kernel(forward_onchip_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads, bytes,
                         stream, unsigned(plan.parts), a, plan.groups, plan.parts, n.scratch);
  }
  cudaError_t error = launch_moments<T, VEC, CHANNELS_LAST>(a, plan, stream);
  return error == cudaSuccess ? launch_apply<T, VEC, CHANNELS_LAST>(a, plan, stream) : error;
}

}  // namespace

int ada_group_norm_moments_cuda(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan,
                                void* stream) {
  return visit_packs(
      a.dtype, a.channels_last, [&](auto vec) { return norm_can_pack<vec()>(a, plan.groups); },
      [&](auto* type, auto vec, auto channels_last) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch_moments<T, vec(), channels_last()>(a, plan, stream);
      });
}

int ada_group_norm_apply_cuda(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan,
                              void* stream) {
  return visit_packs(
      a.dtype, a.channels_last, [&](auto vec) { return norm_can_pack<vec()>(a, plan.groups); },
      [&](auto* type, auto vec, auto channels_last) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch_apply<T, vec(), channels_last()>(a, plan, stream);
      });
}

int ada_group_norm_forward_cuda(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan,
                                void* stream) {
  return visit_packs(
      a.dtype, a.channels_last, [&](auto vec) { return norm_can_pack<vec()>(a, plan.groups); },
      [&](auto* type, auto vec, auto channels_last) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch_forward<T, vec(), channels_last()>(a, plan, stream);
      });
}

}  // namespace lddgan
