// The moments of a tile, in one reading.
//
// All threads sum deviations of a channel from the same pivot, the mean of a few of its packs. So
// data far from zero keeps its digits without a second reading. Every slot has one writer.
#pragma once

#include "ada_group_norm.cuh"

namespace lddgan {

// Packs of a column that its pivots are the mean of: the nearer to the mean, the less is lost.
template <int VEC>
constexpr int kPivots = VEC == 8 ? 2 : 8;
template <int VEC>
constexpr int kPivotFlight = VEC == 8 ? 2 : 4;  // of them, loaded at once

// The moments of the tile's groups: put(g, moments) takes them, once each; no barrier at its end.
// column_at(column) gives what the thread keeps of a column: read(j) and read_away(packs) load;
// sum(loaded) makes the pack of it that counts; keep(j, pack) takes that; where kCopied, copy(j)
// and copied(j) stand for read and keep. ready() is called before the barrier that comes before the
// first bias(c), which is added to all values of a channel of the tile. `shared`:
// norm_moments_floats(cut).
template <int VEC, bool CHANNELS_LAST, int FLIGHT, typename Column, typename Ready, typename Bias,
          typename Put>
__device__ __forceinline__ void part_moments(const NormCut& cut, const NormTile& t, float* shared,
                                             const Column& column_at, const Ready& ready,
                                             const Bias& bias, const Put& put) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  float* pivots = shared + norm_sum_floats(2, cut);  // [channels]
  column_sums<2, VEC, CHANNELS_LAST>(cut, t, shared, [&](int at, float (&sums)[2][kWidth]) {
    auto column = column_at(at);
    float pivot[kWidth] = {};
    auto first = [&] {
      constexpr int kFlight = kPivotFlight<VEC>;
#pragma unroll 1
      for (int first = 0; first < kPivots<VEC>; first += kFlight) {
        decltype(column.read(0)) loaded[kFlight];
#pragma unroll
        for (int i = 0; i < kFlight; ++i) {
          int pack = (2 * (first + i) + 1) * t.packs / (2 * kPivots<VEC>);
          loaded[i] = column.read_away(pack - t.first);
        }
#pragma unroll
        for (int i = 0; i < kFlight; ++i) {
          const auto pack = column.sum(loaded[i]);
#pragma unroll
          for (int e = 0; e < VEC; ++e) pivot[CHANNELS_LAST ? e : 0] += pack.value(e);
        }
      }
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        pivot[e] *= 1.0f / float(CHANNELS_LAST ? kPivots<VEC> : kPivots<VEC> * VEC);
        if (t.first == 0) pivots[at * kWidth + e] = pivot[e];
      }
    };
    auto add = [&](const auto& pack) {
#pragma unroll
      for (int e = 0; e < VEC; ++e) {
        int i = CHANNELS_LAST ? e : 0;
        float away = pack.value(e) - pivot[i];
        sums[0][i] += away;
        sums[1][i] += away * away;
      }
    };
    if constexpr (decltype(column)::kCopied) {
      each_copied_pack<FLIGHT / 2>(
          t.count, [&](int j) { column.copy(j); }, [&](int j) { return column.copied(j); }, first,
          [&](int, const auto& pack) { add(pack); });
    } else {
      each_pack<FLIGHT>(
          t.count, [&](int j) { return column.read(j); }, first,
          [&](int j, const auto& loaded) {
            const auto pack = column.sum(loaded);
            column.keep(j, pack);
            add(pack);
          });
    }
  });
  ready();
  __syncthreads();
  const int cpg = int(t.cpg.divisor);
  const Team team = cut.channel_team;
  const float count = t.positions(), share = reciprocal(count);
  for (int g = team.index(); g < t.groups; g += team.count()) {
    Moments all{};
    if (t.begin < t.end) {
      const int first = g * cpg;
      const Center mean = exact_sum(pivots[first], bias(first));
      // Each channel's mean, less that, and its squared deviations from it: kept in its first
      // slots.
      float* means = shared + first * cut.writers;
      float* squares = means + t.channels * cut.writers;
#pragma unroll 1
      for (int c = team.lane(); c < cpg; c += team.lanes()) {
        const float sum = sum_of(cut, t, shared, 0, first + c), missed = sum * share;
        squares[c * cut.writers] = sum_of(cut, t, shared, 1, first + c) - sum * missed;
        const float away =
            (pivots[first + c] - pivots[first]) + (bias(first + c) - bias(first)) + missed;
        means[c * cut.writers] = away;
        all.missed += away;
      }
      all.missed = team.total(all.missed) * reciprocal(float(cpg));
#pragma unroll 1
      for (int c = team.lane(); c < cpg; c += team.lanes()) {
        const float away = means[c * cut.writers] - all.missed;
        all.squares += squares[c * cut.writers] + count * away * away;
      }
      all.squares = team.total(all.squares);
      all = {count * float(cpg), mean.at, mean.missed + all.missed, all.squares};
    }
    if (team.lane() == 0) put(g, all);
  }
}

// Moments of a part into partial [samples][groups of the norm][parts][2].
__device__ __forceinline__ void store_part(float* partial, const NormCut& cut, const NormTile& t,
                                           int g, const Moments& all) {
  int64_t i = (int64_t(t.sample) * cut.all_groups + t.first_group + g) * cut.parts + t.part;
  partial[2 * i] = all.mean + all.missed;
  partial[2 * i + 1] = fmaxf(all.squares, 0.0f);
}

}  // namespace lddgan
