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
      if (silu) y *= sigmoid<T>(y);
      results[e] = y;
    }
    out.write(j, NormPack<T, VEC>::of(results));
  }
};

// From the moments of the tile's groups what ApplyColumn reads of its channels, [3][channels]; ends
// with a barrier. `own`: of channel threadIdx.x.
__device__ __forceinline__ void put_rows(const AdaGroupNormArgs& a, const NormTile& t,
                                         const ChannelElements& own, const GroupMoments& moments,
                                         float* rows) {
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    const ChannelElements of = c == threadIdx.x ? own : ChannelElements(a, t, c);
    int g = t.group_of(c);
    const Center mean = moments.mean(g);
    NormRow row =
        norm_row(of.scale.value(a.scale.dtype), of.shift.value(a.shift.dtype),
                 center_of(mean.at, of.bias.value(a.bias.dtype)), mean.missed, moments.rstd(g));
    rows[c] = row.at;
    rows[t.channels + c] = row.gain;
    rows[2 * t.channels + c] = row.shift;
    if (c + t.skipped == g * int(t.cpg.divisor) && t.part == 0) {
      int64_t i = int64_t(t.sample) * a.groups + t.first_group + g;
      moments.save(g, a.mean + i, a.rstd + i);
    }
  }
  __syncthreads();
}

// A column of cat(x + bias, x2), as part_moments reads it; KEEP: packs are kept at `cache`.
template <typename T, int VEC, bool KEEP>
struct SourceColumn {
  static constexpr bool kCopied = KEEP && kCopied16<T, VEC>;
  NormPacks<const T, VEC> packs;
  NormPack<T, VEC>* cache;
  NormSlots slots;
  __device__ __forceinline__ NormPack<T, VEC> read(int j) const { return packs.read(j); }
  __device__ __forceinline__ NormPack<T, VEC> read_away(int by) const {
    return packs.read_away(by);
  }
  __device__ __forceinline__ NormPack<T, VEC> sum(const NormPack<T, VEC>& pack) const {
    return pack;
  }
  __device__ __forceinline__ void keep(int j, const NormPack<T, VEC>& pack) const {
    if (KEEP) cache[slots(j)] = pack;
  }
  __device__ __forceinline__ void copy(int j) const {
    start_copy(cache + slots(j), packs.where(j));
  }
  __device__ __forceinline__ NormPack<T, VEC> copied(int j) const { return cache[slots(j)]; }
};

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, kOnchipBlocks<VEC>)
    forward_onchip_kernel(AdaGroupNormArgs a, NormCut cut) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(cut, a.pixels);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* rows = shared + norm_moments_floats(cut);  // [3][channels]; the first is first the bias
  float* own = rows + 3 * t.channels;               // [3][groups], read by the cluster
  const GroupMoments moments{own + 3 * t.groups, t.groups};
  int used = norm_moments_floats(cut) + 3 * t.channels + 7 * t.groups;
  auto* cache = reinterpret_cast<NormPack<T, VEC>*>(shared + (used + 3) / 4 * 4);
  const ChannelElements elements(a, t, threadIdx.x);
  part_moments<VEC, CHANNELS_LAST, kNormFlight>(
      cut, t, shared,
      [&](int column) {
        return SourceColumn<T, VEC, true>{source_packs<T, VEC, CHANNELS_LAST>(a, t, column), cache,
                                          cache_slots<CHANNELS_LAST>(t, column)};
      },
      [&] {
        if (a.bias.data == nullptr) return;
        for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
          rows[c] = c == threadIdx.x ? elements.bias.value(a.bias.dtype) : bias_of(a, t, c);
        }
      },
      [&](int c) { return a.bias.data != nullptr ? rows[c] : 0.0f; },
      [&](int g, const Moments& all) {
        if (cut.parts == 1) return moments.put(g, all, a.eps);
        own[g] = all.mean;
        own[t.groups + g] = all.missed;
        own[2 * t.groups + g] = all.squares;
      });
  if (cut.parts > 1) {
    meet_cluster();
    const Team team = Team::of(cut.parts);
    const int cpg = int(t.cpg.divisor);
    for (int g = team.index(); g < t.groups; g += team.count()) {
      Moments all = merge_moments(cut.parts, team, [&](int rank) {
        int left = int(a.pixels) - rank * cut.part_pixels;
        if (left <= 0) return Moments{};
        const float* of = shared_of(own, rank);
        return Moments{float(cpg) * float(min(left, cut.part_pixels)), of[g], of[t.groups + g],
                       of[2 * t.groups + g]};
      });
      if (team.lane() == 0) moments.put(g, all, a.eps);
    }
  }
  __syncthreads();
  put_rows(a, t, elements, moments, rows);
  each_column(t, [&](int column) {
    const NormSlots slots = cache_slots<CHANNELS_LAST>(t, column);
    each_pack<kNormFlight / 2>(
        t.count, [&](int j) { return cache[slots(j)]; },
        ApplyColumn<T, VEC, CHANNELS_LAST>(a, t, rows, column));
  });
  if (cut.parts > 1) leave_cluster();
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    moments_kernel(AdaGroupNormArgs a, float* partial, NormCut cut) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(cut, a.pixels);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  part_moments<VEC, CHANNELS_LAST, kNormFlight>(
      cut, t, shared,
      [&](int column) {
        return SourceColumn<T, VEC, false>{
            source_packs<T, VEC, CHANNELS_LAST>(a, t, column), nullptr, {}};
      },
      [] {}, [&](int c) { return bias_of(a, t, c); },
      [&](int g, const Moments& all) { store_part(partial, cut, t, g, all); });
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    apply_kernel(AdaGroupNormArgs a, const float* __restrict__ partial, NormCut cut) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(cut, a.pixels);
  LDDGAN_DYNAMIC_SHARED(float, rows);  // [3][channels]
  const GroupMoments moments{rows + 3 * t.channels, t.groups};
  const ChannelElements elements(a, t, threadIdx.x);
  merge_parts(partial + t.sample * a.groups * cut.parts * 2, t.first_group, int(t.cpg.divisor),
              a.pixels, cut.parts, a.eps, moments);
  __syncthreads();
  put_rows(a, t, elements, moments, rows);
  each_column(t, [&](int column) {
    NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
    each_pack(
        t.count, [&](int j) { return x.read(j); },
        ApplyColumn<T, VEC, CHANNELS_LAST>(a, t, rows, column));
  });
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_moments(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  NormLaunch n = norm_launch<T, VEC, CHANNELS_LAST>(a, plan);
  return launch_kernel(moments_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                       norm_moments_floats(n.cut) * 4, stream, 1, a, plan.workspace, n.cut);
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_apply(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  NormLaunch n = norm_launch<T, VEC, CHANNELS_LAST>(a, plan, kNormWidth);
  return launch_kernel(apply_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                       size_t(3 * n.cut.width + 4 * plan.groups) * 4, stream, 1, a, plan.workspace,
                       n.cut);
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_forward(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, void* stream) {
  if (plan.onchip) {
    NormLaunch n = norm_launch<T, VEC, CHANNELS_LAST>(a, plan);
    size_t floats = norm_moments_floats(n.cut) + 3 * n.cut.channels + 7 * plan.groups;
    return launch_kernel(forward_onchip_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                         (floats + 3) / 4 * 16 + n.tile_bytes, stream, unsigned(plan.parts), a,
                         n.cut);
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
