// How the kernels of ada_group_norm are launched: the cut of an image into tiles, threads, shared
// bytes, packs. What a block asks of shared memory is also known to
// lddgan_kernels/ops/_norm_plan.py, which plans by it; a test holds the two together.
#pragma once

#include "cuda.cuh"
#include "lddgan/ada_group_norm.h"
#include "moments.cuh"

namespace lddgan {

constexpr int kNormThreads = 256;  // the most of a block
constexpr int kNormBlocks = 2;     // of those, that share a multiprocessor at least
// The same where packs, of 16-bit elements, are copied past the registers: for 80 of those the code
// of other architectures spills a few.
template <int VEC>
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int kOnchipBlocks = VEC == 8 ? 3 : kNormBlocks;
#else
constexpr int kOnchipBlocks = kNormBlocks;
#endif
constexpr int kWhole = 1 << 30;   // channels of a block: all of its groups
constexpr int kNormWidth = 1024;  // channels of a block, at most, where a group can be cut

// Divides numbers below 2^31 by a number of the launch: one multiplication and a shift.
struct Divider {
  uint32_t divisor = 1, factor = 1u << 31, shift = 31;
  Divider() = default;
  explicit Divider(int d) : divisor(uint32_t(d)) {
    uint32_t log = 0;
    while ((uint64_t(1) << log) < divisor) ++log;
    shift = 31 + log;
    factor = uint32_t(((uint64_t(1) << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ int divide(int n) const {
    return int(uint64_t(uint32_t(n)) * factor >> shift);
  }
  __device__ __forceinline__ int remainder(int n) const { return n - divide(n) * int(divisor); }
};

// How images are cut into tiles, and a tile among threads; see NormTile for the words.
struct NormCut {
  int all_groups, groups, parts, part_pixels;
  int width, channels;  // of a block: at most; of its groups
  Team team;            // of a column's share (contiguous)
  int columns, slices;  // columns: side by side among the threads
  Team channel_team;    // of a group's channels
  bool warp_shares;     // lanes of a warp share a column (channels_last)
  int writers;          // of a channel's sums
  Divider cpg, per_sample, chunks, by_parts, by_columns, by_step;

  unsigned blocks(int64_t samples) const {
    return unsigned(samples * (all_groups / groups) * parts * int(chunks.divisor));
  }
};

inline NormCut norm_cut(int channels, int all_groups, int64_t pixels, int groups, int parts,
                        int width, int threads, int vec, bool channels_last) {
  NormCut cut;
  int cpg = channels / all_groups;
  cut.all_groups = all_groups;
  cut.groups = groups;
  cut.parts = parts;
  cut.part_pixels = norm_part_size(pixels, parts);
  cut.channels = groups * cpg;
  cut.width = width < cut.channels ? width : cut.channels;
  cut.team = Team::of(channels_last ? 1 : (cut.part_pixels + vec - 1) / vec);
  cut.channel_team = Team::of(cpg);
  int teams = threads >> cut.team.log, columns = channels_last ? cut.width / vec : cut.width;
  cut.columns = columns < teams ? columns : teams;
  cut.slices = teams / cut.columns;
  cut.warp_shares = channels_last && 32 % columns == 0;
  cut.writers = cut.warp_shares ? threads / 32 : cut.slices;
  cut.cpg = Divider(cpg);
  cut.per_sample = Divider(all_groups / groups);
  cut.chunks = Divider((cut.channels + cut.width - 1) / cut.width);
  cut.by_parts = Divider(parts);
  cut.by_columns = Divider(cut.columns);
  cut.by_step = Divider(cut.slices << cut.team.log);
  return cut;
}

// Floats of shared memory for K sums of each channel by each of its writers.
__host__ __device__ inline int norm_sum_floats(int k, const NormCut& cut) {
  return k * cut.writers * cut.width;
}

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

// Threads of a block that loads so many packs: eight each and more, so that what a thread does once
// is little beside.
inline int norm_threads(int64_t packs) { return packs >= 4096 ? 256 : packs >= 512 ? 128 : 64; }

// A launch of a plan, of a kernel that reads so many images. Tiles of kernels that keep none may be
// `width` channels wide.
struct NormLaunch {
  NormCut cut;
  unsigned blocks;
  int threads;
  size_t tile_bytes;
};

template <typename T, int VEC, bool CHANNELS_LAST>
NormLaunch norm_launch(int64_t samples, int64_t channels, int64_t all_groups, int64_t pixels,
                       int groups, int parts, int width = kWhole, int images = 1) {
  int64_t tile = groups * (channels / all_groups) * norm_held_pixels(pixels, parts);
  int threads = norm_threads(images * tile / VEC);
  NormCut cut = norm_cut(int(channels), int(all_groups), pixels, groups, parts, width, threads, VEC,
                         CHANNELS_LAST);
  return {cut, cut.blocks(samples), threads, size_t(tile) * sizeof(T)};
}

template <typename T, int VEC, bool CHANNELS_LAST>
NormLaunch norm_launch(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan, int width = kWhole,
                       int images = 1) {
  return norm_launch<T, VEC, CHANNELS_LAST>(a.samples, a.channels1 + a.channels2, a.groups,
                                            a.pixels, plan.groups, plan.parts, width, images);
}

// Shared floats of part_moments (part_moments.cuh).
__host__ __device__ inline int norm_moments_floats(const NormCut& cut) {
  return norm_sum_floats(2, cut) + cut.channels;
}

}  // namespace lddgan
