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

// Lanes of a warp that work together: neighbours, 2^log of them.
struct Team {
  int log;
  // Enough for so many terms.
  static __host__ __device__ __forceinline__ Team of(int terms) {
    int log = 0;
    while (log < 5 && (1 << log) < terms) ++log;
    return {log};
  }
  __device__ __forceinline__ int lanes() const { return 1 << log; }
  __device__ __forceinline__ int lane() const { return threadIdx.x & (lanes() - 1); }
  __device__ __forceinline__ int index() const { return threadIdx.x >> log; }  // in the block
  __device__ __forceinline__ int count() const { return blockDim.x >> log; }
  // The sum over its lanes, which call it together.
  template <typename T>
  __device__ __forceinline__ T total(T value) const {
    // Only these: others may be idle.
    const unsigned mask = (0xffffffffu >> (32 - lanes())) << (threadIdx.x & 31 & ~(lanes() - 1));
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      if (offset < lanes()) value += __shfl_xor_sync(mask, value, offset);
    }
    return value;
  }
};

// A number and what it missed by rounding.
struct Center {
  float at, missed;
};

__device__ __forceinline__ Center exact_sum(float a, float b) {
  float at = a + b, back = at - a;
  return {at, (a - (at - back)) + (b - back)};
}

// 1 / sqrt(squares / count + eps): a group's factor, whose error all of its elements have.
__device__ __forceinline__ Center root_of(float squares, float count, float eps) {
  const float share = reciprocal(count), mean = squares * share;
  Center variance = exact_sum(mean, eps);
  variance.missed += fmaf(-mean, count, squares) * share;
  const float root = rsqrtf(variance.at), half = variance.at * root;
  const float away = fmaf(-half, root, 1.0f) - fmaf(variance.at, root, -half) * root -
                     variance.missed * root * root;
  return {root, fabsf(away) < 1.0f ? 0.5f * root * away : 0.0f};  // not of infinite ones
}

// Merges `slots` moments (Chan) by the lanes of a team; each gets the result. slot(i) reads the
// i-th, which may be empty (count 0); the first is not.
template <typename Slot>
__device__ __forceinline__ Moments merge_moments(int slots, Team team, const Slot& slot) {
  Moments all{0, slot(0).mean, 0, 0};
  float away = 0;
#pragma unroll 1
  for (int i = team.lane(); i < slots; i += team.lanes()) {
    Moments one = slot(i);
    if (one.count > 0) {
      all.count += one.count;
      away += one.count * ((one.mean - all.mean) + one.missed);
    }
  }
  all.count = team.total(all.count);
  all.missed = team.total(away) * reciprocal(all.count);
#pragma unroll 1
  for (int i = team.lane(); i < slots; i += team.lanes()) {
    Moments one = slot(i);
    if (one.count > 0) {
      away = ((one.mean - all.mean) + one.missed) - all.missed;
      all.squares += one.squares + one.count * away * away;
    }
  }
  all.squares = team.total(all.squares);
  return all;
}

// Of a sample's groups in shared memory, [4][groups]: mean and rstd, each with what it missed.
struct GroupMoments {
  float* at;
  int groups;
  __device__ __forceinline__ Center mean(int g) const { return {at[g], at[groups + g]}; }
  __device__ __forceinline__ Center rstd(int g) const {
    return {at[2 * groups + g], at[3 * groups + g]};
  }
  __device__ __forceinline__ void put(int g, const Moments& all, float eps) const {
    const Center root = root_of(fmaxf(all.squares, 0.0f), all.count, eps);
    at[g] = all.mean;
    at[groups + g] = all.missed;
    at[2 * groups + g] = root.at;
    at[3 * groups + g] = root.missed;
  }
  // What the backward pass reads.
  __device__ __forceinline__ void save(int g, float* to_mean, float* to_rstd) const {
    *to_mean = mean(g).at + mean(g).missed;
    *to_rstd = rstd(g).at + rstd(g).missed;
  }
};

// From the partial moments [sample's groups][parts][2] of a sample those of its groups of `cpg`
// channels from `first_group` on; no barrier.
__device__ __forceinline__ void merge_parts(const float* partial, int first_group, int cpg,
                                            int64_t pixels, int parts, float eps,
                                            const GroupMoments& moments) {
  const int size = norm_part_size(pixels, parts);
  const Team team = Team::of(parts);
  for (int g = team.index(); g < moments.groups; g += team.count()) {
    const float* p = partial + int64_t(first_group + g) * parts * 2;
    Moments all = merge_moments(parts, team, [&](int i) {
      int64_t left = pixels - int64_t(i) * size;
      if (left <= 0) return Moments{0, 0, 0, 0};
      return Moments{float(cpg) * float(left < size ? left : size), p[2 * i], 0, p[2 * i + 1]};
    });
    if (team.lane() == 0) moments.put(g, all, eps);
  }
}

}  // namespace lddgan
