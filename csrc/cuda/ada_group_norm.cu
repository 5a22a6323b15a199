// Adaptive group norm, forward. See ada_group_norm.cuh for the tiles.
//
// "onchip": the block keeps its tile in shared memory between the statistics and the result, so x
// is read once; on sm_90 the blocks of a cluster cut H*W and add their sums through distributed
// shared memory. "split": a first kernel leaves each part's moments, a second merges them and
// applies.
#include "part_moments.cuh"

namespace lddgan {

namespace {

// The activation of a pack's normalised values, stored.
template <typename T, int VEC, bool CHANNELS_LAST>
struct ApplyColumn {
  static constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  float at[kWidth], gain[kWidth], shift[kWidth];
  NormPacks<T, VEC> out;
  bool silu;

  // `rows`: [3][channels] in shared memory.
  __device__ __forceinline__ ApplyColumn(const AdaGroupNormArgs& a, const NormTile& t,
                                         const float* rows, int column)
      : out(column_packs<VEC, CHANNELS_LAST>(static_cast<T*>(a.out), t, a.channels1 + a.channels2,
                                             a.pixels, t.first_channel + column * kWidth)),
        silu(a.silu) {
    read_column<kWidth>(rows, column, at);
    read_column<kWidth>(rows + t.channels, column, gain);
    read_column<kWidth>(rows + 2 * t.channels, column, shift);
  }

  __device__ __forceinline__ void operator()(int j, const NormPack<T, VEC>& pack) const {
    float results[VEC];
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
      int i = CHANNELS_LAST ? e : 0;
      float y = (pack.value(e) - at[i]) * gain[i] + shift[i];
      if (silu) y *= sigmoid(y);
      results[e] = y;
    }
    out.write(j, NormPack<T, VEC>::of(results));
  }
};

// What ApplyColumn reads of a channel.
__device__ __forceinline__ void put_row(float* rows, const NormTile& t, int channel, NormRow row) {
  rows[channel] = row.at;
  rows[t.channels + channel] = row.gain;
  rows[2 * t.channels + channel] = row.shift;
}

__device__ __forceinline__ void store_moments(const AdaGroupNormArgs& a, const NormTile& t, int g,
                                              float mean, float rstd) {
  int64_t i = t.sample * a.groups + t.first_group + g;
  a.mean[i] = mean;
  a.rstd[i] = rstd;
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 2)
    forward_onchip_kernel(AdaGroupNormArgs a, int groups, int parts, int scratch_floats) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts, kWhole);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* scratch = shared;
  float* rows = scratch + scratch_floats;      // [3][channels]: bias, or center and what it missed
  float* per_channel = rows + 3 * t.channels;  // [2][channels]
  float* own = per_channel + 2 * t.channels;   // [2][groups], read by the cluster
  float* totals = own + 2 * t.groups;          // [2][groups]
  float* means = totals + 2 * t.groups;        // [groups]
  int used = scratch_floats + 5 * t.channels + 5 * t.groups;
  auto* cache = reinterpret_cast<NormPack<T, VEC>*>(shared + (used + 3) / 4 * 4);
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) rows[c] = bias_of(a, t, c);
  const float count = float(t.cpg) * float(a.pixels), positions = float(t.end - t.begin);

  column_sums<1, VEC, CHANNELS_LAST>(
      t, scratch,
      [&](int column, float* sums) {
        NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
        each_pack(
            t.count, [&](int j) { return x.read(j); },
            [&](int j, const NormPack<T, VEC>& pack) {
              cache[t.slot(column) + j * t.slot_step] = pack;
#pragma unroll
              for (int e = 0; e < VEC; ++e) sums[CHANNELS_LAST ? e : 0] += pack.value(e);
            });
      },
      [&](int, int c, float total) { per_channel[c] = total; });
  group_sums<1>(t.groups, t.cpg, own,
                [&](int, int c) { return per_channel[c] + positions * rows[c]; });
  cluster_sums(own, totals, t.groups, parts);
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    int g = t.group_of(c);
    float mean = totals[g] / count;
    Center center = center_of(mean, rows[c]);
    rows[c] = center.at;
    rows[t.channels + c] = center.missed;
    if (c == g * t.cpg) means[g] = mean;
  }
  __syncthreads();
  // Around the rounded mean: the deviations add up to what it missed, far from zero too.
  column_sums<2, VEC, CHANNELS_LAST>(
      t, scratch,
      [&](int column, float* sums) {
        float at[kWidth];
        read_column<kWidth>(rows, column, at);
        each_pack(
            t.count, [&](int j) { return cache[t.slot(column) + j * t.slot_step]; },
            [&](int, const NormPack<T, VEC>& pack) {
#pragma unroll
              for (int e = 0; e < VEC; ++e) {
                int i = CHANNELS_LAST ? e : 0;
                float away = pack.value(e) - at[i];
                sums[i] += away;
                sums[kWidth + i] += away * away;
              }
            });
      },
      [&](int k, int c, float total) { per_channel[k * t.channels + c] = total; });
  group_sums<2>(t.groups, t.cpg, own, [&](int k, int c) {
    float sum = per_channel[c], missed = rows[t.channels + c], all = positions * missed;
    return k == 0 ? sum + all : per_channel[t.channels + c] + missed * (2 * sum + all);
  });
  cluster_sums(own, totals, 2 * t.groups, parts);
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    int g = t.group_of(c);
    float missed = totals[g] / count;
    float variance = totals[t.groups + g] / count - missed * missed;
    float rstd = rsqrtf(fmaxf(variance, 0.0f) + a.eps);
    put_row(rows, t, c, norm_row(a, t, c, {rows[c], rows[t.channels + c]}, missed, rstd));
    if (c == g * t.cpg && t.part == 0) store_moments(a, t, g, means[g] + missed, rstd);
  }
  __syncthreads();
  each_column(t, [&](int column) {
    each_pack(
        t.count, [&](int j) { return cache[t.slot(column) + j * t.slot_step]; },
        ApplyColumn<T, VEC, CHANNELS_LAST>(a, t, rows, column));
  });
}

// A column of cat(x + bias, x2), as part_moments reads it.
template <typename T, int VEC, bool CHANNELS_LAST>
struct SourceColumn {
  const AdaGroupNormArgs& a;
  const NormTile& t;
  int column;
  NormPacks<const T, VEC> packs;
  __device__ __forceinline__ NormPack<T, VEC> load(int j) const { return packs.read(j); }
  __device__ __forceinline__ void values(int, const NormPack<T, VEC>& pack, float* values) const {
#pragma unroll
    for (int e = 0; e < VEC; ++e) values[e] = pack.value(e);
  }
  __device__ __forceinline__ float bias(int e) const {
    return bias_of(a, t, column * (CHANNELS_LAST ? VEC : 1) + e);
  }
};

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 2)
    moments_kernel(AdaGroupNormArgs a, float* partial, int groups, int parts) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts, kWhole);
  LDDGAN_DYNAMIC_SHARED(float, slots);
  part_moments<VEC, CHANNELS_LAST>(
      t, slots, partial + t.sample * a.groups * parts * 2, [&](int column) {
        return SourceColumn<T, VEC, CHANNELS_LAST>{
            a, t, column, source_packs<T, VEC, CHANNELS_LAST>(a, t, column)};
      });
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 2)
    apply_kernel(AdaGroupNormArgs a, const float* __restrict__ partial, int groups, int parts,
                 int width) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts, width);
  LDDGAN_DYNAMIC_SHARED(float, rows);      // [3][channels]
  float* moments = rows + 3 * t.channels;  // [3][groups]
  merge_parts(partial + t.sample * a.groups * parts * 2, t.first_group, t.groups, t.cpg, a.pixels,
              parts, a.eps, moments);
  __syncthreads();
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    int g = t.group_of(c);
    float mean = moments[g], missed = moments[t.groups + g], rstd = moments[2 * t.groups + g];
    put_row(rows, t, c, norm_row(a, t, c, center_of(mean, bias_of(a, t, c)), missed, rstd));
    if (c + t.skipped == g * t.cpg && t.part == 0) store_moments(a, t, g, mean + missed, rstd);
  }
  __syncthreads();
  each_column(t, [&](int column) {
    NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
    each_pack(
        t.count, [&](int j) { return x.read(j); },
        ApplyColumn<T, VEC, CHANNELS_LAST>(a, t, rows, column));
  });
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_moments(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  NormLaunch n = norm_launch<T, VEC>(a, plan);
  return launch_kernel(moments_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                       norm_moments_bytes(n.threads, n.channels, VEC, CHANNELS_LAST), stream, 1, a,
                       plan.workspace, plan.groups, plan.parts);
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_apply(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  NormLaunch n = norm_launch<T, VEC>(a, plan);
  return launch_kernel(apply_kernel<T, VEC, CHANNELS_LAST>, n.blocks * n.chunks, n.threads,
                       size_t(3 * n.width + 3 * plan.groups) * 4, stream, 1, a, plan.workspace,
                       plan.groups, plan.parts, n.width);
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_forward(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  if (plan.onchip) {
    NormLaunch n = norm_launch<T, VEC>(a, plan);
    int scratch = norm_sum_floats(2, n.threads, n.channels, VEC, CHANNELS_LAST);
    int floats = scratch + 5 * n.channels + 5 * plan.groups;
    return launch_kernel(forward_onchip_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                         (floats + 3) / 4 * 16 + n.tile_bytes, stream, unsigned(plan.parts), a,
                         plan.groups, plan.parts, scratch);
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
