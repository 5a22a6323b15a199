// The moments of one part, in one reading.
//
// Each warp (or thread, where warps share no column) sums deviations from a pivot: the mean of the
// first packs that it reads. So data far from zero keeps its digits without a second reading. The
// moments around the pivots are merged in shared memory; every slot has one writer.
#pragma once

#include "ada_group_norm.cuh"

namespace lddgan {

// Adds up over the lanes of a warp that share the thread's column; they all call it.
template <bool CHANNELS_LAST>
__device__ __forceinline__ float column_total(const NormTile& t, float value) {
  if (CHANNELS_LAST) {
    if (32 % t.columns == 0) {
      for (int offset = 16; offset >= t.columns; offset /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, offset);
      }
    }
    return value;
  }
  return lane_total(t.lanes, value);
}

// The moments of the tile to `partial` [groups of the norm][parts][2], of the sample. column(i)
// gives what the thread keeps of a column: load(j); values(j, loaded, values), VEC of them; and
// bias(e), which is added to all values of a channel.
template <int VEC, bool CHANNELS_LAST, int FLIGHT = kNormFlight, typename Column>
__device__ __forceinline__ void part_moments(const NormTile& t, float* shared, float* partial,
                                             const Column& column_at) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1, kStep = CHANNELS_LAST ? 1 : VEC;
  float* counts = shared;  // [writers][channels] each
  float* means = counts + t.writers * t.channels;
  float* squares = means + t.writers * t.channels;
  each_column(t, [&](int at) {
    auto column = column_at(at);
    float values[VEC], pivot[kWidth] = {}, sums[kWidth] = {}, more[kWidth] = {};
    auto add = [&] {
#pragma unroll
      for (int e = 0; e < VEC; ++e) {
        int i = CHANNELS_LAST ? e : 0;
        float away = values[e] - pivot[i];
        sums[i] += away;
        more[i] += away * away;
      }
    };
    if (t.count > 0) {
      column.values(0, column.load(0), values);
#pragma unroll
      for (int e = 0; e < VEC; ++e) pivot[CHANNELS_LAST ? e : 0] += values[e];
    }
    float readers = fmaxf(column_total<CHANNELS_LAST>(t, t.count > 0 ? float(kStep) : 0.0f), 1.0f);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) pivot[e] = column_total<CHANNELS_LAST>(t, pivot[e]) / readers;
    if (t.count > 0) add();
    each_pack<FLIGHT>(
        t.count - 1, [&](int j) { return column.load(j + 1); },
        [&](int j, const auto& loaded) {
          column.values(j + 1, loaded, values);
          add();
        });
    float count = column_total<CHANNELS_LAST>(t, float(t.count * kStep));
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      int slot = t.writer * t.channels + at * kWidth + e;
      float sum = column_total<CHANNELS_LAST>(t, sums[e]), missed = sum / fmaxf(count, 1.0f);
      float square = column_total<CHANNELS_LAST>(t, more[e]) - sum * missed;
      if (!t.writes) continue;
      counts[slot] = count;
      means[slot] = (pivot[e] + column.bias(e)) + missed;
      squares[slot] = square;
    }
  });
  __syncthreads();
  const int slots = t.writers * t.cpg, lanes = merge_lanes(slots);
  for (int g = threadIdx.x / lanes; g < t.groups; g += blockDim.x / lanes) {
    Moments all{};
    if (t.begin < t.end) {
      all = merge_moments(slots, lanes, [&](int i) {
        int slot = i / t.cpg * t.channels + g * t.cpg + i % t.cpg;
        return Moments{counts[slot], means[slot], 0, squares[slot]};
      });
    }
    if (threadIdx.x % lanes == 0) {
      int64_t i = (int64_t(t.first_group + g) * t.parts + t.part) * 2;
      partial[i] = all.mean + all.missed;
      partial[i + 1] = fmaxf(all.squares, 0.0f);
    }
  }
}

}  // namespace lddgan
