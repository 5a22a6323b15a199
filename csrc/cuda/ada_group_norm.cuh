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

namespace lddgan {

constexpr int kWhole = 1 << 30;  // channels of a block: all of its groups
constexpr int kNormFlight = 4;   // packs that a thread loads before it uses the first

// The tile of one block, and the thread's place in it.
struct NormTile {
  int64_t sample;
  int first_group, groups, first_channel, channels, cpg, part, parts;
  int skipped;     // channels of the first group before first_channel
  int begin, end;  // positions
  int columns, column, column_step;
  int slice, slices;                          // of the thread: which share of a column it walks
  int count, position, position_step;         // its packs of a column
  int first_slot, slot_of_column, slot_step;  // where they lie in a cache of the tile
  int writer, writers;                        // of its sums: after lanes have added theirs
  int lanes;                                  // of a warp that work on one channel (contiguous)
  bool idle;                                  // the thread has no share
  bool writes;                                // the thread writes its sums

  __device__ __forceinline__ int group_of(int channel) const { return (channel + skipped) / cpg; }
  __device__ __forceinline__ int slot(int column) const {  // of the thread's first pack
    return first_slot + column * slot_of_column;
  }
};

// The tile of this block where images of `channels` channels in `all_groups` groups are cut.
template <int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormTile norm_tile(int channels, int all_groups, int pixels, int groups,
                                              int parts, int width) {
  NormTile t;
  int per_sample = all_groups / groups;
  int block = blockIdx.x;
  t.part = block % parts;
  block /= parts;
  t.parts = parts;
  t.cpg = channels / all_groups;
  int whole = groups * t.cpg, chunks = (whole + width - 1) / width;
  t.skipped = block % chunks * width;
  block /= chunks;
  t.sample = block / per_sample;
  t.groups = groups;
  t.first_group = block % per_sample * groups;
  t.first_channel = t.first_group * t.cpg + t.skipped;
  t.channels = min(whole - t.skipped, width);
  int size = norm_part_size(pixels, parts);
  t.begin = min(t.part * size, pixels);
  t.end = min(t.begin + size, pixels);
  int threads = blockDim.x, thread = threadIdx.x;
  int first, step, last;  // packs of a column
  if (CHANNELS_LAST) {
    t.columns = t.channels / VEC;
    int active = min(t.columns, threads);
    t.column = thread % active;
    t.column_step = active;
    t.slice = thread / active;
    t.slices = threads / active;
    t.lanes = 1;
    bool shared_by_warp = 32 % t.columns == 0;
    t.writer = shared_by_warp ? thread / 32 : t.slice;
    t.writers = shared_by_warp ? threads / 32 : t.slices;
    t.writes = !shared_by_warp || thread % 32 < t.columns;
    first = t.slice;
    step = t.slices;
    last = t.end - t.begin;
    t.position = t.begin + first;
    t.position_step = step;
    t.first_slot = first * t.columns;
    t.slot_of_column = 1;
    t.slot_step = step * t.columns;
  } else {
    t.columns = t.channels;
    t.lanes = 1;
    while (t.lanes < 32 && t.lanes * VEC < size) t.lanes *= 2;
    int teams = threads / t.lanes, team = thread / t.lanes, lane = thread % t.lanes;
    t.slices = max(1, teams / t.channels);
    t.column = team % min(teams, t.channels);
    t.column_step = teams;
    t.slice = team / min(teams, t.channels);
    t.writer = t.slice;
    t.writers = t.slices;
    t.writes = lane == 0;
    first = lane + t.lanes * t.slice;
    step = t.lanes * t.slices;
    last = (t.end - t.begin + VEC - 1) / VEC;
    t.position = t.begin + first * VEC;
    t.position_step = step * VEC;
    t.first_slot = first;
    t.slot_of_column = last;
    t.slot_step = step;
  }
  t.idle = t.slice >= t.slices;
  t.count = first < last ? (last - first + step - 1) / step : 0;
  return t;
}

template <int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormTile norm_tile(const AdaGroupNormArgs& a, int groups, int parts,
                                              int width) {
  return norm_tile<VEC, CHANNELS_LAST>(int(a.channels1 + a.channels2), int(a.groups), int(a.pixels),
                                       groups, parts, width);
}

// Calls use(j, load(j)) for j = 0..count - 1: some loads first, then their uses.
template <int FLIGHT = kNormFlight, typename Load, typename Use>
__device__ __forceinline__ void each_pack(int count, const Load& load, const Use& use) {
  for (int j = 0; j < count; j += FLIGHT) {
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
  for (int column = t.column; column < t.columns && !t.idle; column += t.column_step) visit(column);
}

// Sums over a block: visit(column, sums) adds the thread's packs of a column to sums[k * WIDTH +
// e]. put(k, channel of the tile, total) takes the totals; ends with a barrier. `scratch` holds
// norm_sum_floats(K, ...) floats.
template <int K, int VEC, bool CHANNELS_LAST, typename Visit, typename Put>
__device__ __forceinline__ void column_sums(const NormTile& t, float* scratch, const Visit& visit,
                                            const Put& put) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  each_column(t, [&](int column) {
    float sums[K * kWidth] = {};
    visit(column, sums);
    if (CHANNELS_LAST) {
      if (32 % t.columns == 0) {
        for (int offset = 16; offset >= t.columns; offset /= 2) {
#pragma unroll
          for (int i = 0; i < K * kWidth; ++i) {
            sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], offset);
          }
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < K; ++k) sums[k] = lane_total(t.lanes, sums[k]);
    }
    if (!t.writes) return;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        scratch[(k * t.writers + t.writer) * t.channels + column * kWidth + e] =
            sums[k * kWidth + e];
      }
    }
  });
  __syncthreads();
  for (int i = threadIdx.x; i < K * t.channels; i += blockDim.x) {
    int k = i / t.channels, channel = i % t.channels;
    float total = 0;
    for (int w = 0; w < t.writers; ++w) {
      total += scratch[(k * t.writers + w) * t.channels + channel];
    }
    put(k, channel, total);
  }
  __syncthreads();
}

// Adds up value(k, channel) over the `cpg` channels of each group: out[k * groups + g]; ends with a
// barrier.
template <int K, typename Total, typename Value>
__device__ __forceinline__ void group_sums(int groups, int cpg, Total* out, const Value& value) {
  int lanes = merge_lanes(cpg);
  for (int i = threadIdx.x / lanes; i < K * groups; i += blockDim.x / lanes) {
    int k = i / groups, first = i % groups * cpg;
    Total total = 0;
    for (int c = threadIdx.x % lanes; c < cpg; c += lanes) total += value(k, first + c);
    total = lane_total(lanes, total);
    if (threadIdx.x % lanes == 0) out[i] = total;
  }
  __syncthreads();
}

// Adds `values` over the blocks of the cluster, in rank order; every block gets the totals.
__device__ __forceinline__ void cluster_sums(float* values, float* totals, int count, int parts) {
  if (parts == 1) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) totals[i] = values[i];
    __syncthreads();
    return;
  }
#if defined(LDDGAN_EMULATED_CUDA) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
  cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  cluster.sync();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    float total = 0;
    for (int rank = 0; rank < parts; ++rank) total += cluster.map_shared_rank(values, rank)[i];
    totals[i] = total;
  }
  cluster.sync();  // nobody may change or leave `values` while others read
#else
  __trap();  // launch_kernel refuses before
#endif
}

// VEC elements as they lie in memory.
template <typename T, int VEC>
struct alignas(VEC * sizeof(T)) NormPack {
  T data[VEC];
  __device__ __forceinline__ float value(int e) const { return device_float(data[e]); }
  static __device__ __forceinline__ NormPack of(const float (&values)[VEC]) {
    NormPack pack;
#pragma unroll
    for (int e = 0; e < VEC; ++e) pack.data[e] = from_float<T>(values[e]);
    return pack;
  }
};

// Of 16-bit elements as words: taken apart as soon as loaded, packs would be waited for one by one.
template <typename T>
struct alignas(16) NormPack<T, 8> {
  uint32_t words[4];
  __device__ __forceinline__ float value(int e) const {
    return e % 2 == 0 ? low_float<T>(words[e / 2]) : high_float<T>(words[e / 2]);
  }
  static __device__ __forceinline__ NormPack of(const float (&values)[8]) {
    NormPack pack;
#pragma unroll
    for (int k = 0; k < 4; ++k) pack.words[k] = word_of<T>(values[2 * k], values[2 * k + 1]);
    return pack;
  }
};

// Where the pack at (channel of the tile, position) lies in an image of `channels` channels whose
// channel `first` is the sample's.
template <bool CHANNELS_LAST>
__device__ __forceinline__ int64_t image_offset(int64_t sample, int64_t channels, int64_t pixels,
                                                int channel, int position) {
  return CHANNELS_LAST ? (sample * pixels + position) * channels + channel
                       : (sample * channels + channel) * pixels + position;
}

// The thread's packs of a column of an image: pack j begins j * step bytes on.
template <typename T, int VEC>
struct NormPacks {
  T* at;
  int step;  // 32 bits, so that an address is one instruction
  template <typename P>
  static __device__ __forceinline__ P* moved(P* p, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
    return reinterpret_cast<P*>(reinterpret_cast<Byte*>(p) + bytes);
  }
  __device__ __forceinline__ NormPack<std::remove_const_t<T>, VEC> read(int j) const {
    using Pack = const NormPack<std::remove_const_t<T>, VEC>;
    return *reinterpret_cast<Pack*>(moved(at, int64_t(j) * step));
  }
  __device__ __forceinline__ void write(int j, const NormPack<T, VEC>& pack) const {
    *reinterpret_cast<NormPack<T, VEC>*>(moved(at, int64_t(j) * step)) = pack;
  }
};

// Of a column, in an image of all channels.
template <int VEC, bool CHANNELS_LAST, typename T>
__device__ __forceinline__ NormPacks<T, VEC> column_packs(T* image, const NormTile& t,
                                                          int64_t channels, int64_t pixels,
                                                          int channel) {
  return {image + image_offset<CHANNELS_LAST>(t.sample, channels, pixels, channel, t.position),
          int((CHANNELS_LAST ? t.position_step * channels : t.position_step) * sizeof(T))};
}

// Of a column, in the two images that channels are split between; packs do not straddle them.
template <int VEC, bool CHANNELS_LAST, typename T>
__device__ __forceinline__ NormPacks<T, VEC> split_packs(T* first, T* second,
                                                         const AdaGroupNormArgs& a,
                                                         const NormTile& t, int column) {
  int c = t.first_channel + column * (CHANNELS_LAST ? VEC : 1);
  if (c < a.channels1) {
    return column_packs<VEC, CHANNELS_LAST>(first, t, a.channels1, a.pixels, c);
  }
  return column_packs<VEC, CHANNELS_LAST>(second, t, a.channels2, a.pixels, c - int(a.channels1));
}

template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormPacks<const T, VEC> source_packs(const AdaGroupNormArgs& a,
                                                                const NormTile& t, int column) {
  return split_packs<VEC, CHANNELS_LAST>(static_cast<const T*>(a.x), static_cast<const T*>(a.x2), a,
                                         t, column);
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

__device__ __forceinline__ float read_row(const ChannelRows& rows, int64_t sample, int channel) {
  int64_t i = sample * rows.stride + channel;
  switch (rows.dtype) {
    case Dtype::kFloat32:
      return static_cast<const float*>(rows.data)[i];
    case Dtype::kBFloat16:
      return device_float(static_cast<const __nv_bfloat16*>(rows.data)[i]);
    default:
      return device_float(static_cast<const __half*>(rows.data)[i]);
  }
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

// The bias of a channel of the tile, zero where there is none.
__device__ __forceinline__ float bias_of(const AdaGroupNormArgs& a, const NormTile& t,
                                         int channel) {
  int c = t.first_channel + channel;
  return a.bias.data != nullptr && c < a.channels1 ? read_row(a.bias, t.sample, c) : 0.0f;
}

// x + bias - mean is (x - at) + missed, with no digit lost: data far from zero keeps its own.
struct Center {
  float at, missed;
};

__device__ __forceinline__ Center center_of(float mean, float bias) {
  float at = mean - bias, back = at - mean;
  return {at, (bias + back) - (mean - (at - back))};
}

// What a channel is normalised by: scale * (x + bias - mean - missed) * rstd + shift is
// (x - at) * gain + shift.
struct NormRow {
  float at, gain, shift;
};

__device__ __forceinline__ NormRow norm_row(const AdaGroupNormArgs& a, const NormTile& t,
                                            int channel, Center center, float missed, float rstd) {
  float gain = read_row(a.scale, t.sample, t.first_channel + channel) * rstd;
  float shift = read_row(a.shift, t.sample, t.first_channel + channel);
  return {center.at, gain, shift + (center.missed - missed) * gain};
}

}  // namespace lddgan
