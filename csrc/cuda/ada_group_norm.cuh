// What the forward and backward CUDA kernels of ada_group_norm share: how a block walks its tile.
//
// A block takes `groups` neighbouring groups of one sample (its channels) over a range of
// positions; where a group is wider than `width` channels, a chunk of them. Threads move packs of
// VEC elements: of neighbouring positions of a channel (contiguous layout) or of neighbouring
// channels at a position (channels_last). A column is what a thread keeps to, with its coefficients
// in registers: a channel, or a pack of channels; `slices` threads share a column and their sums
// are added in order.
#pragma once

#include <cooperative_groups.h>

#include "cuda.cuh"
#include "lddgan/ada_group_norm.h"
#include "moments.cuh"
#include "norm_launch.cuh"
#include "norm_packs.cuh"

namespace lddgan {

constexpr int kNormFlight = 8;  // packs that a thread loads before it uses the first

// The tile of one block, and the thread's place in it.
struct NormTile {
  int sample, first_group, groups, first_channel, channels, part;
  int skipped;     // channels of the first group before first_channel
  int begin, end;  // positions
  int columns, column, column_step;
  int first, step, packs;  // of a column: the thread's first pack and how far its next ones lie
  int count;               // the thread's packs of a column
  int writer;              // of its sums: after lanes have added theirs
  Divider cpg;

  __device__ __forceinline__ int group_of(int channel) const {
    return cpg.divide(channel + skipped);
  }
  __device__ __forceinline__ float positions() const { return float(end - begin); }
};

// The tile of this block where images of so many pixels are cut so.
template <int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormTile norm_tile(const NormCut& cut, int64_t pixels) {
  NormTile t;
  int block = cut.by_parts.divide(blockIdx.x), sized = cut.chunks.divide(block);
  t.part = blockIdx.x - block * cut.parts;
  t.skipped = (block - sized * int(cut.chunks.divisor)) * cut.width;
  t.sample = cut.per_sample.divide(sized);
  t.groups = cut.groups;
  t.first_group = (sized - t.sample * int(cut.per_sample.divisor)) * cut.groups;
  t.cpg = cut.cpg;
  t.first_channel = t.first_group * int(cut.cpg.divisor) + t.skipped;
  t.channels = min(cut.channels - t.skipped, cut.width);
  t.begin = min(t.part * cut.part_pixels, int(pixels));
  t.end = min(t.begin + cut.part_pixels, int(pixels));
  int lane = CHANNELS_LAST ? 0 : cut.team.lane();
  int unit = CHANNELS_LAST ? threadIdx.x : cut.team.index();
  int slice = cut.by_columns.divide(unit);
  t.columns = CHANNELS_LAST ? t.channels / VEC : t.channels;
  t.column = unit - slice * cut.columns;
  t.column_step = cut.columns;
  t.first = CHANNELS_LAST ? slice : lane + (slice << cut.team.log);
  t.step = CHANNELS_LAST ? cut.slices : cut.slices << cut.team.log;
  t.packs = CHANNELS_LAST ? t.end - t.begin : (t.end - t.begin + VEC - 1) / VEC;
  t.count = cut.by_step.divide(t.packs - t.first + t.step - 1);
  if (slice >= cut.slices) t.count = 0, t.column = t.columns;
  t.writer = CHANNELS_LAST && cut.warp_shares ? threadIdx.x / 32 : slice;
  return t;
}

// Calls use(j, load(j)) for j = 0..count - 1: some loads first, then their uses; first() before
// the first use.
template <int FLIGHT = kNormFlight, typename Load, typename First, typename Use>
__device__ __forceinline__ void each_pack(int count, const Load& load, const First& first,
                                          const Use& use) {
  for (int j = 0; j < count; j += FLIGHT) {
    decltype(load(0)) loaded[FLIGHT];
#pragma unroll
    for (int u = 0; u < FLIGHT; ++u) {
      if (j + u < count) loaded[u] = load(j + u);
    }
    if (j == 0) first();
#pragma unroll
    for (int u = 0; u < FLIGHT; ++u) {
      if (j + u < count) use(j + u, loaded[u]);
    }
  }
}

template <int FLIGHT = kNormFlight, typename Load, typename Use>
__device__ __forceinline__ void each_pack(int count, const Load& load, const Use& use) {
  each_pack<FLIGHT>(count, load, [] {}, use);
}

// The same of packs that copy(j) starts to bring into shared memory, all of them first, from where
// load(j) takes them.
template <int FLIGHT, typename Copy, typename Load, typename First, typename Use>
__device__ __forceinline__ void each_copied_pack(int count, const Copy& copy, const Load& load,
                                                 const First& first, const Use& use) {
  int batches = 0;
#pragma unroll 1
  for (int j = 0; j < count; j += FLIGHT, ++batches) {
#pragma unroll
    for (int u = 0; u < FLIGHT; ++u) {
      if (j + u < count) copy(j + u);
    }
    end_batch();
  }
  if (count > 0) first();
#pragma unroll 1
  for (int j = 0; j < count; j += FLIGHT) {
    await_batches(--batches);
    decltype(load(0)) loaded[FLIGHT];
#pragma unroll
    for (int u = 0; u < FLIGHT; ++u) {
      if (j + u < count) loaded[u] = load(j + u);
    }
#pragma unroll
    for (int u = 0; u < FLIGHT; ++u) {
      if (j + u < count) use(j + u, loaded[u]);
    }
  }
}

// Calls visit(column) for the thread's columns.
template <typename Visit>
__device__ __forceinline__ void each_column(const NormTile& t, const Visit& visit) {
  for (int column = t.column; column < t.columns; column += t.column_step) visit(column);
}

// Adds `values` up over the lanes of a warp that share its `columns` columns: put(e, total) takes
// those that this lane is left with. Lanes halve the values between them as long as there are some.
template <int KEPT, int OFFSET = 16, int WIDTH, typename Put>
__device__ __forceinline__ void share_sums(float (&values)[WIDTH], int columns, int first,
                                           const Put& put) {
  if (OFFSET < columns) {
#pragma unroll
    for (int e = 0; e < KEPT; ++e) put(first + e, values[e]);
  } else if constexpr (OFFSET > 0) {
    const bool upper = threadIdx.x & OFFSET;
    if constexpr (KEPT > 1) {
      constexpr int kHalf = KEPT / 2;
#pragma unroll
      for (int e = 0; e < kHalf; ++e) {
        float given = upper ? values[e] : values[e + kHalf];
        float own = upper ? values[e + kHalf] : values[e];
        values[e] = own + __shfl_xor_sync(0xffffffffu, given, OFFSET);
      }
      share_sums<kHalf, OFFSET / 2>(values, columns, upper ? first + kHalf : first, put);
    } else {
      values[0] += __shfl_xor_sync(0xffffffffu, values[0], OFFSET);
      share_sums<1, OFFSET / 2>(values, columns, upper ? WIDTH : first, put);  // not twice
    }
  }
}

// Sums over a block: visit(column, sums) adds the thread's packs of a column to sums[k][e]. Leaves
// what its writers have in `scratch`, norm_sum_floats(K, cut) floats; no barrier.
template <int K, int VEC, bool CHANNELS_LAST, typename Visit>
__device__ __forceinline__ void column_sums(const NormCut& cut, const NormTile& t, float* scratch,
                                            const Visit& visit) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  const int writers = cut.writers;
  each_column(t, [&](int column) {
    float sums[K][kWidth] = {};
    visit(column, sums);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float* to = scratch + (k * t.channels + column * kWidth) * writers + t.writer;
      if (CHANNELS_LAST && cut.warp_shares) {
        share_sums<kWidth>(sums[k], t.columns, 0, [&](int e, float sum) {
          if (e < kWidth) to[e * writers] = sum;
        });
      } else if (CHANNELS_LAST) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) to[e * writers] = sums[k][e];
      } else {
        float sum = cut.team.total(sums[k][0]);
        if (cut.team.lane() == 0) to[0] = sum;
      }
    }
  });
}

// The k-th sum of channel c of the tile: what its writers left.
__device__ __forceinline__ float sum_of(const NormCut& cut, const NormTile& t, const float* scratch,
                                        int k, int c) {
  const float* from = scratch + (k * t.channels + c) * cut.writers;
  // In four sums: a fourth of the waiting, and less rounding.
  float totals[4] = {};
#pragma unroll 1
  for (int w = 0; w < cut.writers; w += 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (w + k < cut.writers) totals[k] += from[w + k];
    }
  }
  return (totals[0] + totals[1]) + (totals[2] + totals[3]);
}

// A cluster's blocks go on once all have come here: what they wrote to shared memory can be read.
__device__ __forceinline__ void meet_cluster() {
#if defined(LDDGAN_EMULATED_CUDA) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  cluster.sync();
#else
  __trap();  // launch_kernel refuses before
#endif
}

// The last thing that the blocks of a cluster do: nobody may leave while others read.
__device__ __forceinline__ void leave_cluster() {
#if defined(LDDGAN_EMULATED_CUDA) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  cluster.sync();
#endif
}

// `p`, of this block's shared memory, in that of another of its cluster.
template <typename T>
__device__ __forceinline__ const T* shared_of(T* p, int rank) {
#if defined(LDDGAN_EMULATED_CUDA) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  return cooperative_groups::this_cluster().map_shared_rank(p, rank);
#else
  return p;
#endif
}

// Of the column that begins with a channel, in an image of all channels.
template <int VEC, bool CHANNELS_LAST, typename T>
__device__ __forceinline__ NormPacks<T, VEC> column_packs(T* image, const NormTile& t,
                                                          int64_t channels, int64_t pixels,
                                                          int channel) {
  int position = t.begin + (CHANNELS_LAST ? t.first : t.first * VEC);
  int64_t first = CHANNELS_LAST ? (t.sample * pixels + position) * channels + channel
                                : (t.sample * channels + channel) * pixels + position;
  int unit = CHANNELS_LAST ? int(channels * sizeof(T)) : int(VEC * sizeof(T));
  return {image + first, unit, unit * t.step};
}

// Of a column, in the two images that channels are split between; packs do not straddle them.
template <int VEC, bool CHANNELS_LAST, typename T>
__device__ __forceinline__ NormPacks<T, VEC> split_packs(T* first, T* second,
                                                         const AdaGroupNormArgs& a,
                                                         const NormTile& t, int column) {
  int c = t.first_channel + column * (CHANNELS_LAST ? VEC : 1);
  bool second_image = c >= a.channels1;
  return column_packs<VEC, CHANNELS_LAST>(second_image ? second : first, t,
                                          second_image ? a.channels2 : a.channels1, a.pixels,
                                          second_image ? c - int(a.channels1) : c);
}

template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormPacks<const T, VEC> source_packs(const AdaGroupNormArgs& a,
                                                                const NormTile& t, int column) {
  return split_packs<VEC, CHANNELS_LAST>(static_cast<const T*>(a.x), static_cast<const T*>(a.x2), a,
                                         t, column);
}

// Where a thread keeps its packs of a column in a cache of the tile: pack j at first + j * step.
struct NormSlots {
  int first, step;
  __device__ __forceinline__ int operator()(int j) const { return first + j * step; }
};

template <bool CHANNELS_LAST>
__device__ __forceinline__ NormSlots cache_slots(const NormTile& t, int column) {
  if (CHANNELS_LAST) return {t.first * t.columns + column, t.step * t.columns};
  return {column * t.packs + t.first, t.step};
}

// A column's WIDTH values of a row of shared memory, into registers.
template <int WIDTH>
__device__ __forceinline__ void read_column(const float* row, int column, float* values) {
  if constexpr (WIDTH % 4 == 0) {
#pragma unroll
    for (int e = 0; e < WIDTH; e += 4) {
      float4 v = *reinterpret_cast<const float4*>(row + column * WIDTH + e);
      values[e] = v.x, values[e + 1] = v.y, values[e + 2] = v.z, values[e + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int e = 0; e < WIDTH; ++e) values[e] = row[column * WIDTH + e];
  }
}

// An element of a row as it lies in memory: asked for early, it is waited for where it is used.
struct RowElement {
  uint32_t bits = 0;
  __device__ __forceinline__ RowElement() {}
  __device__ __forceinline__ RowElement(const ChannelRows& rows, int64_t sample, int channel) {
    int64_t i = sample * rows.stride + channel;
    bits = rows.dtype == Dtype::kFloat32 ? static_cast<const uint32_t*>(rows.data)[i]
                                         : static_cast<const uint16_t*>(rows.data)[i];
  }
  __device__ __forceinline__ float value(Dtype dtype) const {
    switch (dtype) {
      case Dtype::kFloat32:
        return reinterpret_cast<const float&>(bits);
      case Dtype::kBFloat16:
        return low_float<__nv_bfloat16>(bits);
      default:
        return low_float<__half>(bits);
    }
  }
};

__device__ __forceinline__ float read_row(const ChannelRows& rows, int64_t sample, int channel) {
  return RowElement(rows, sample, channel).value(rows.dtype);
}

__device__ __forceinline__ void write_value(void* p, Dtype dtype, int64_t i, float value) {
  switch (dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(p)[i] = value;
      return;
    case Dtype::kBFloat16:
      static_cast<__nv_bfloat16*>(p)[i] = from_float<__nv_bfloat16>(value);
      return;
    default:
      static_cast<__half*>(p)[i] = from_float<__half>(value);
  }
}

// What a channel of the tile is scaled, shifted and biased by.
struct ChannelElements {
  RowElement scale, shift, bias;
  __device__ __forceinline__ ChannelElements(const AdaGroupNormArgs& a, const NormTile& t,
                                             int channel) {
    int c = t.first_channel + channel;
    if (channel >= t.channels) return;
    scale = RowElement(a.scale, t.sample, c);
    shift = RowElement(a.shift, t.sample, c);
    if (a.bias.data != nullptr && c < a.channels1) bias = RowElement(a.bias, t.sample, c);
  }
};

// The bias of a channel of the tile, zero where there is none.
__device__ __forceinline__ float bias_of(const AdaGroupNormArgs& a, const NormTile& t,
                                         int channel) {
  int c = t.first_channel + channel;
  return a.bias.data != nullptr && c < a.channels1 ? read_row(a.bias, t.sample, c) : 0.0f;
}

// x + bias - mean is (x - at) + missed, with no digit lost: data far from zero keeps its own.
__device__ __forceinline__ Center center_of(float mean, float bias) {
  Center sum = exact_sum(mean, -bias);
  return {sum.at, -sum.missed};
}

// What a channel is normalised by: scale * (x + bias - mean - missed) * rstd + shift is
// (x - at) * gain + shift.
struct NormRow {
  float at, gain, shift;
};

__device__ __forceinline__ NormRow norm_row(float scale, float shift, Center center, float missed,
                                            Center rstd) {
  float gain = fmaf(scale, rstd.at, scale * rstd.missed);
  return {center.at, gain, shift + (center.missed - missed) * gain};
}

}  // namespace lddgan
