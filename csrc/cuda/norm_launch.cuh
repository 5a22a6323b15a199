// How the kernels of ada_group_norm are launched: threads, shared bytes, packs. What a block asks
// of shared memory is also known to lddgan_kernels/ops/_norm_plan.py, which plans by it; a test
// holds the two together.
#pragma once

#include "cuda.cuh"
#include "lddgan/ada_group_norm.h"
#include "moments.cuh"

namespace lddgan {

constexpr int kNormThreads = 256;  // the most of a block; two blocks share a multiprocessor
constexpr int kNormWidth = 1024;   // channels of a block, at most, where a group can be cut

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
inline int norm_threads(int64_t packs) { return packs >= 4 * 256 ? 256 : 128; }

// The blocks of a plan. Tiles of kernels that keep none may be `width` channels wide, in `chunks`.
struct NormLaunch {
  unsigned blocks, chunks;
  int threads, channels, width;
  size_t tile_bytes;
};

template <typename T, int VEC>
NormLaunch norm_launch(const AdaGroupNormArgs& a, const AdaGroupNormPlan& plan) {
  int channels = plan.groups * int((a.channels1 + a.channels2) / a.groups);
  int64_t tile = channels * norm_held_pixels(a.pixels, plan.parts);
  int width = channels < kNormWidth ? channels : kNormWidth;
  return {unsigned(a.samples * (a.groups / plan.groups) * plan.parts),
          unsigned((channels + width - 1) / width),
          norm_threads(tile / VEC),
          channels,
          width,
          size_t(tile) * sizeof(T)};
}

// Of part_moments (part_moments.cuh): three floats a slot.
inline size_t norm_moments_bytes(int threads, int channels, int vec, bool channels_last) {
  return size_t(norm_sum_floats(3, threads, channels, vec, channels_last)) * sizeof(float);
}

}  // namespace lddgan
