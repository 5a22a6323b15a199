// Partial moments: which pixels a part holds, and how parts are merged.
#pragma once

#include "cuda.cuh"

namespace lddgan {

// The pixels of a part: whole 8s, so whole packs of any dtype, and the same rule on every backend
// (lddgan_kernels/triton/_norm_moments.py). The last parts may be empty.
__host__ __device__ __forceinline__ int norm_part_size(int64_t pixels, int parts) {
  int eights = int((pixels + 7) / 8);
  return (eights + parts - 1) / parts * 8;
}

// Of a part, what a block must hold at most.
__host__ __device__ __forceinline__ int64_t norm_held_pixels(int64_t pixels, int parts) {
  int64_t size = norm_part_size(pixels, parts);
  return size < pixels ? size : pixels;
}

// Moments of some values: their mean is mean + missed (the float32 mean and what it missed, so that
// data far from zero keeps its digits), squares the sum of squared deviations from it.
struct Moments {
  float count, mean, missed, squares;
};

// Adds up over `lanes` neighbouring lanes of a warp (a power of two) that call it together.
template <typename T>
__device__ __forceinline__ T lane_total(int lanes, T value) {
  int lane = threadIdx.x % 32;
  // Only these: others may be idle.
  unsigned mask = lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1) << (lane / lanes * lanes);
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(mask, value, offset);
  }
  return value;
}

// Merges `slots` moments (Chan) by the `lanes` neighbouring lanes of a warp (a power of two) that
// call it together; each gets the result. slot(i) reads the i-th, which may be empty (count 0); the
// first is not.
template <typename Slot>
__device__ __forceinline__ Moments merge_moments(int slots, int lanes, const Slot& slot) {
  int lane = threadIdx.x % lanes;
  Moments all{0, slot(0).mean, 0, 0};
  float away = 0;
  for (int i = lane; i < slots; i += lanes) {
    Moments one = slot(i);
    if (one.count > 0) {
      all.count += one.count;
      away += one.count * (one.mean - all.mean);
    }
  }
  all.count = lane_total(lanes, all.count);
  all.missed = lane_total(lanes, away) / all.count;
  for (int i = lane; i < slots; i += lanes) {
    Moments one = slot(i);
    if (one.count > 0) {
      away = (one.mean - all.mean) - all.missed;
      all.squares += one.squares + one.count * away * away;
    }
  }
  all.squares = lane_total(lanes, all.squares);
  return all;
}

// Lanes that merge `slots` moments.
__device__ __forceinline__ int merge_lanes(int slots) {
  int lanes = 1;
  while (lanes < 32 && lanes < slots) lanes *= 2;
  return lanes;
}

// From the partial moments [sample's groups][parts][2] of a sample, for `groups` groups of `cpg`
// channels from `first_group` on: [3][groups] of mean, what it missed and rstd; no barrier.
__device__ __forceinline__ void merge_parts(const float* partial, int first_group, int groups,
                                            int cpg, int64_t pixels, int parts, float eps,
                                            float* moments) {
  int size = norm_part_size(pixels, parts), lanes = merge_lanes(parts);
  for (int g = threadIdx.x / lanes; g < groups; g += blockDim.x / lanes) {
    const float* p = partial + int64_t(first_group + g) * parts * 2;
    Moments all = merge_moments(parts, lanes, [&](int i) {
      int64_t left = pixels - int64_t(i) * size;
      if (left <= 0) return Moments{0, 0, 0, 0};
      return Moments{float(cpg) * float(left < size ? left : size), p[2 * i], 0, p[2 * i + 1]};
    });
    if (threadIdx.x % lanes == 0) {
      moments[g] = all.mean;
      moments[groups + g] = all.missed;
      moments[2 * groups + g] = rsqrtf(all.squares / all.count + eps);
    }
  }
}

}  // namespace lddgan
