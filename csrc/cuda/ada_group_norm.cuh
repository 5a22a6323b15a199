// What the forward and backward CUDA kernels of ada_group_norm share: how a block walks its tile.
//
// A block takes `groups` neighbouring groups of one sample (its channels) over a range of
// positions. Threads move packs of VEC elements: of neighbouring positions of a channel (contiguous
// layout) or of neighbouring channels at a position (channels_last). A column is what a thread
// keeps to: a channel, or a pack of channels; `slices` threads share a column and their sums are
// added in order.
#pragma once

#include <cooperative_groups.h>

#include "cuda.cuh"
#include "lddgan/ada_group_norm.h"
#include "moments.cuh"

namespace lddgan {

constexpr int kNormThreads = 512;  // the most of a block

// The tile of one block, and the thread's place in it.
struct NormTile {
  int64_t sample;
  int first_group, groups, first_channel, channels, cpg, part, parts;
  int begin, end;  // positions
  int columns, column, column_step;
  int slice, slices;    // of the thread: which share of a column it walks
  int writer, writers;  // of its sums: after lanes of a warp have added theirs
  int lanes;            // of a warp that work on one channel (contiguous layout)
  bool idle;            // the thread has no share
};

// The tile of this block where images of `channels` channels in `all_groups` groups are cut.
template <int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormTile norm_tile(int channels, int all_groups, int pixels, int groups,
                                              int parts) {
  NormTile t;
  int per_sample = all_groups / groups;
  int block = blockIdx.x;
  t.part = block % parts;
  block /= parts;
  t.parts = parts;
  t.sample = block / per_sample;
  t.groups = groups;
  t.first_group = block % per_sample * groups;
  t.cpg = channels / all_groups;
  t.first_channel = t.first_group * t.cpg;
  t.channels = groups * t.cpg;
  int size = norm_part_size(pixels, parts);
  t.begin = min(t.part * size, pixels);
  t.end = min(t.begin + size, pixels);
  int threads = blockDim.x, thread = threadIdx.x;
  if (CHANNELS_LAST) {
    t.columns = t.channels / VEC;
    int active = min(t.columns, threads);
    t.column = thread % active;
    t.column_step = active;
    t.slice = thread / active;
    t.slices = threads / active;
    t.idle = t.slice >= t.slices;
    t.lanes = 1;
    bool shared_by_warp = 32 % t.columns == 0;
    t.writer = shared_by_warp ? thread / 32 : t.slice;
    t.writers = shared_by_warp ? threads / 32 : t.slices;
  } else {
    t.columns = t.channels;
    t.lanes = 1;
    while (t.lanes < 32 && t.lanes * VEC < size) t.lanes *= 2;
    int teams = threads / t.lanes, team = thread / t.lanes;
    t.slices = max(1, teams / t.channels);
    t.column = team % min(teams, t.channels);
    t.column_step = teams;
    t.slice = team / min(teams, t.channels);
    t.idle = t.slice >= t.slices;
    t.writer = t.slice;
    t.writers = t.slices;
  }
  return t;
}

template <int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormTile norm_tile(const AdaGroupNormArgs& a, int groups, int parts) {
  return norm_tile<VEC, CHANNELS_LAST>(int(a.channels1 + a.channels2), int(a.groups), int(a.pixels),
                                       groups, parts);
}

// Shared floats that a block's column sums need at most: K sums of `channels` for each writer.
inline int norm_sum_floats(int k, int threads, int channels, int vec, bool channels_last) {
  int writers;
  if (channels_last) {
    int columns = channels / vec;
    writers = 32 % columns == 0 ? threads / 32 : threads / (columns < threads ? columns : threads);
  } else {
    writers = threads / channels;  // with one lane a team; fewer otherwise
  }
  return k * (writers > 1 ? writers : 1) * channels;
}

// Sums over a block: visit(channel, position, pack, sums) is called for each of the thread's packs
// and adds to sums[k * WIDTH + e]. Leaves total k of channel c (of the tile) in out[k * channels +
// c] and ends with a barrier. `scratch` holds norm_sum_floats(K, ...) floats.
template <int K, int VEC, bool CHANNELS_LAST, typename Visit>
__device__ __forceinline__ void column_sums(const NormTile& t, float* scratch, float* out,
                                            const Visit& visit) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  for (int column = t.column; column < t.columns && !t.idle; column += t.column_step) {
    float sums[K * kWidth] = {};
    if (CHANNELS_LAST) {
      for (int p = t.begin + t.slice; p < t.end; p += t.slices) {
        visit(column * VEC, p, (p - t.begin) * t.columns + column, sums);
      }
      if (32 % t.columns == 0) {
        for (int offset = 16; offset >= t.columns; offset /= 2) {
#pragma unroll
          for (int i = 0; i < K * kWidth; ++i) {
            sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], offset);
          }
        }
      }
    } else {
      int lane = threadIdx.x % t.lanes, row = (t.end - t.begin + VEC - 1) / VEC;
      for (int q = lane + t.lanes * t.slice; q < row; q += t.lanes * t.slices) {
        visit(column, t.begin + q * VEC, column * row + q, sums);
      }
#pragma unroll
      for (int k = 0; k < K; ++k) sums[k] = lane_total(t.lanes, sums[k]);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        scratch[(k * t.writers + t.writer) * t.channels + column * kWidth + e] =
            sums[k * kWidth + e];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < K * t.channels; i += blockDim.x) {
    int k = i / t.channels, channel = i % t.channels;
    float total = 0;
    for (int w = 0; w < t.writers; ++w) {
      total += scratch[(k * t.writers + w) * t.channels + channel];
    }
    out[i] = total;
  }
  __syncthreads();
}

// Calls visit(channel, position, pack) for each of the thread's packs.
template <int VEC, bool CHANNELS_LAST, typename Visit>
__device__ __forceinline__ void each_pack(const NormTile& t, const Visit& visit) {
  for (int column = t.column; column < t.columns && !t.idle; column += t.column_step) {
    if (CHANNELS_LAST) {
      for (int p = t.begin + t.slice; p < t.end; p += t.slices) {
        visit(column * VEC, p, (p - t.begin) * t.columns + column);
      }
    } else {
      int lane = threadIdx.x % t.lanes, row = (t.end - t.begin + VEC - 1) / VEC;
      for (int q = lane + t.lanes * t.slice; q < row; q += t.lanes * t.slices) {
        visit(column, t.begin + q * VEC, column * row + q);
      }
    }
  }
}

// Adds up the channels of each group: out[k * groups + g]; ends with a barrier.
template <int K>
__device__ __forceinline__ void group_sums(const NormTile& t, const float* per_channel,
                                           float* out) {
  for (int i = threadIdx.x; i < K * t.groups; i += blockDim.x) {
    int k = i / t.groups, group = i % t.groups;
    float total = 0;
    for (int c = 0; c < t.cpg; ++c) total += per_channel[k * t.channels + group * t.cpg + c];
    out[i] = total;
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

template <typename T, int VEC>
struct alignas(VEC * sizeof(T)) NormPack {
  T data[VEC];
};

// Where the pack at (channel of the tile, position) lies in an image of `channels` channels whose
// channel `first` is the sample's.
template <bool CHANNELS_LAST>
__device__ __forceinline__ int64_t image_offset(int64_t sample, int64_t channels, int64_t pixels,
                                                int channel, int position) {
  return CHANNELS_LAST ? (sample * pixels + position) * channels + channel
                       : (sample * channels + channel) * pixels + position;
}

// The pack of x or x2 at (channel of the tile, position). Packs do not straddle the two.
template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormPack<T, VEC> read_source(const AdaGroupNormArgs& a,
                                                        const NormTile& t, int channel,
                                                        int position) {
  int c = t.first_channel + channel;
  const T* p;
  if (c < a.channels1) {
    p = static_cast<const T*>(a.x) +
        image_offset<CHANNELS_LAST>(t.sample, a.channels1, a.pixels, c, position);
  } else {
    p = static_cast<const T*>(a.x2) + image_offset<CHANNELS_LAST>(t.sample, a.channels2, a.pixels,
                                                                  c - int(a.channels1), position);
  }
  return *reinterpret_cast<const NormPack<T, VEC>*>(p);
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

// The bias of the tile's channels into shared memory; no barrier.
__device__ __forceinline__ void load_bias(const AdaGroupNormArgs& a, const NormTile& t,
                                          float* bias) {
  for (int i = threadIdx.x; i < t.channels; i += blockDim.x) {
    int c = t.first_channel + i;
    bias[i] = a.bias.data != nullptr && c < a.channels1 ? read_row(a.bias, t.sample, c) : 0.0f;
  }
}

// scale, shift and bias of the tile's channels into shared memory: [3][channels]; no barrier.
__device__ __forceinline__ void load_rows(const AdaGroupNormArgs& a, const NormTile& t,
                                          float* rows) {
  for (int i = threadIdx.x; i < t.channels; i += blockDim.x) {
    rows[i] = read_row(a.scale, t.sample, t.first_channel + i);
    rows[t.channels + i] = read_row(a.shift, t.sample, t.first_channel + i);
  }
  load_bias(a, t, rows + 2 * t.channels);
}

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// Whether 16-byte packs of VEC elements fit every pointer, row and channel of the problem.
template <int VEC>
inline bool norm_can_pack(const AdaGroupNormArgs& a, int groups) {
  auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!aligned(a.x) || !aligned(a.x2) || !aligned(a.out)) return false;
  if (!a.channels_last) return a.pixels % VEC == 0;
  int64_t cpg = (a.channels1 + a.channels2) / a.groups;
  return a.channels1 % VEC == 0 && a.channels2 % VEC == 0 && groups * cpg % VEC == 0;
}

// Runs run(T*, VEC, CHANNELS_LAST), the last two as types, for a dtype and layout: with 16-byte
// packs where can_pack(VEC) allows.
template <typename CanPack, typename Run>
inline cudaError_t visit_packs(Dtype dtype, bool channels_last, const CanPack& can_pack,
                               const Run& run) {
  cudaError_t error = cudaSuccess;
  visit(dtype, [&](auto* type) {
    using T = typename DeviceType<std::remove_pointer_t<decltype(type)>>::type;
    std::integral_constant<int, 16 / sizeof(T)> wide;
    std::integral_constant<int, 1> narrow;
    T* of = nullptr;
    if (channels_last) {
      error = can_pack(wide) ? run(of, wide, std::true_type()) : run(of, narrow, std::true_type());
    } else {
      error =
          can_pack(wide) ? run(of, wide, std::false_type()) : run(of, narrow, std::false_type());
    }
  });
  return error;
}

// Threads of a block for a tile of `packs` packs: about four packs each.
inline int norm_threads(int64_t packs) {
  return packs >= 4 * 512 ? 512 : packs >= 4 * 256 ? 256 : 128;
}

}  // namespace lddgan
