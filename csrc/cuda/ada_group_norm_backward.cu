// Adaptive group norm, backward; x_hat is recomputed from x and the saved moments.
//
// Per sample and channel it needs the sums of g * x_hat, g and x_hat (g: the gradient before the
// activation). The first two are grad_scale and grad_shift; with them
//   grad_x = rstd * (scale * g - mean(scale * g) - x_hat * mean(scale * g * x_hat)),
// means over the group. x_hat is (u + missed) * rstd, where u = x - at (ada_group_norm.cuh:
// Center): loops work on u, and what is constant of a channel is put in afterwards. No atomics:
// every sum has one writer, so runs repeat bit for bit.
#include "ada_group_norm.cuh"

namespace lddgan {

namespace {

constexpr int kPairs = kNormFlight / 2;  // of packs, that a thread loads before it uses the first

// x and the incoming gradient.
template <typename T, int VEC>
struct GradientPacks {
  NormPack<T, VEC> x, grad;
};

template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ NormPacks<const T, VEC> incoming_packs(const AdaGroupNormBackwardArgs& b,
                                                                  const NormTile& t, int column) {
  const AdaGroupNormArgs& a = b.forward;
  return column_packs<VEC, CHANNELS_LAST>(static_cast<const T*>(b.grad_out), t,
                                          a.channels1 + a.channels2, a.pixels,
                                          t.first_channel + column * (CHANNELS_LAST ? VEC : 1));
}

template <typename T, int VEC>
__device__ __forceinline__ GradientPacks<T, VEC> read_pair(const NormPacks<const T, VEC>& x,
                                                           const NormPacks<const T, VEC>& grad,
                                                           int j) {
  return {x.read(j), grad.read(j)};
}

// What the loops read of the tile's channels, [4][channels]: at, gain, shift, missed; no barrier.
__device__ __forceinline__ void load_rows(const AdaGroupNormArgs& a, const NormTile& t,
                                          float* rows) {
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    const ChannelElements of(a, t, c);
    int64_t i = int64_t(t.sample) * a.groups + t.first_group + t.group_of(c);
    float mean = a.mean[i], rstd = a.rstd[i];
    Center center = center_of(mean, of.bias.value(a.bias.dtype));
    NormRow row = norm_row(of.scale.value(a.scale.dtype), of.shift.value(a.shift.dtype), center, 0,
                           {rstd, 0});
    rows[c] = row.at;
    rows[t.channels + c] = row.gain;
    rows[2 * t.channels + c] = row.shift;
    rows[3 * t.channels + c] = center.missed;
  }
}

template <typename T, int WIDTH>
struct ColumnRows {
  float at[WIDTH], gain[WIDTH], shift[WIDTH];
  bool silu;
  __device__ __forceinline__ ColumnRows(const AdaGroupNormArgs& a, const NormTile& t,
                                        const float* rows, int column)
      : silu(a.silu) {
    read_column<WIDTH>(rows, column, at);
    read_column<WIDTH>(rows + t.channels, column, gain);
    read_column<WIDTH>(rows + 2 * t.channels, column, shift);
  }
  // The gradient before the activation, of u = x - at.
  __device__ __forceinline__ float through(float u, float grad, int i) const {
    float y = u * gain[i] + shift[i], s = sigmoid<T>(y), slope = s * (1.0f + y * (1.0f - s));
    return grad * (silu ? slope : 1.0f);  // chosen, not branched: elements overlap
  }
};

// Adds the sums of g * u, g and u of the packs that each(count, use) goes through.
template <typename T, int VEC, bool CHANNELS_LAST, typename Each>
__device__ __forceinline__ void add_sums(const AdaGroupNormArgs& a, const NormTile& t,
                                         const float* rows, int column, const Each& each,
                                         float (&sums)[3][CHANNELS_LAST ? VEC : 1]) {
  ColumnRows<T, CHANNELS_LAST ? VEC : 1> row(a, t, rows, column);
  each(t.count, [&](const GradientPacks<T, VEC>& packs) {
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
      int i = CHANNELS_LAST ? e : 0;
      float u = packs.x.value(e) - row.at[i];
      float g = row.through(u, packs.grad.value(e), i);
      sums[0][i] += g * u;
      sums[1][i] += g;
      sums[2][i] += u;
    }
  });
}

// The means over the groups of scale * g * x_hat and scale * g, and what follows from them: the
// gradients of scale, shift and bias, written by the first part's block, and rows 3 and 4 of
// write_grads. sum(k, channel of the first group) are the sums over all positions of g * u, g and
// u. `means`: [2][groups]; ends with a barrier.
template <typename Sum>
__device__ __forceinline__ void finish_sums(const AdaGroupNormBackwardArgs& b, const NormTile& t,
                                            const Sum& sum, double* means, float* rows) {
  const AdaGroupNormArgs& a = b.forward;
  const int cpg = int(t.cpg.divisor);
  const Team team = Team::of(cpg);
  const double share = 1 / (double(cpg) * double(a.pixels));
  for (int i = team.index(); i < 2 * t.groups; i += team.count()) {
    const int k = i >= t.groups, g = k ? i - t.groups : i;
    const int64_t group = int64_t(t.sample) * a.groups + t.first_group + g;
    const float mean = a.mean[group], rstd = a.rstd[group];
    double total = 0;
    for (int c = g * cpg + team.lane(); c < (g + 1) * cpg; c += team.lanes()) {
      const int channel = c - t.skipped;  // of whole groups, though the tile may be a chunk of one
      float value = sum(1, c);
      if (k == 0) {
        float missed = center_of(mean, bias_of(a, t, channel)).missed;
        value = (sum(0, c) + missed * value) * rstd;
      }
      total += double(read_row(a.scale, t.sample, t.first_channel + channel)) * value;
    }
    total = team.total(total);
    if (team.lane() == 0) means[i] = total * share;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    const int g = t.group_of(c), channel = t.first_channel + c;
    const float rstd = a.rstd[int64_t(t.sample) * a.groups + t.first_group + g];
    const float missed = rows[3 * t.channels + c];
    const double mean_gx = means[g], mean_g = means[t.groups + g];
    const float slope = -rstd * rstd * float(mean_gx);
    rows[3 * t.channels + c] = slope;
    rows[4 * t.channels + c] = slope * missed - rstd * float(mean_g);
    if (t.part != 0) continue;
    const float sum_g = sum(1, t.skipped + c);
    int64_t i = t.sample * (a.channels1 + a.channels2) + channel;
    write_value(b.grad_scale, b.grad_scale_dtype, i,
                (sum(0, t.skipped + c) + missed * sum_g) * rstd);
    write_value(b.grad_shift, b.grad_shift_dtype, i, sum_g);
    if (b.grad_bias != nullptr && channel < a.channels1) {
      // Large terms that cancel.
      const double sum_x = (sum(2, t.skipped + c) + missed * float(a.pixels)) * rstd;
      double scale = read_row(a.scale, t.sample, channel);
      double value = scale * sum_g - mean_g * double(a.pixels) - mean_gx * sum_x;
      write_value(b.grad_bias, b.grad_bias_dtype, t.sample * a.channels1 + channel,
                  float(value * rstd));
    }
  }
  __syncthreads();
}

// grad_x = gain * g + slope * u + level, of the packs that load(j) gives; `rows` [5][channels].
template <bool COPIED, typename T, int VEC, bool CHANNELS_LAST, typename Load>
__device__ __forceinline__ void write_grads(const AdaGroupNormBackwardArgs& b, const NormTile& t,
                                            const float* rows, int column, const Load& load) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  const AdaGroupNormArgs& a = b.forward;
  ColumnRows<T, kWidth> row(a, t, rows, column);
  float slope[kWidth], level[kWidth];
  read_column<kWidth>(rows + 3 * t.channels, column, slope);
  if (!COPIED) read_column<kWidth>(rows + 4 * t.channels, column, level);
  NormPacks<T, VEC> out = split_packs<VEC, CHANNELS_LAST>(static_cast<T*>(b.grad_x),
                                                          static_cast<T*>(b.grad_x2), a, t, column);
  each_pack<COPIED ? kPairs / 2 : kPairs>(
      t.count, load, [&](int j, const GradientPacks<T, VEC>& packs) {
        float results[VEC];
        if (COPIED) read_column<kWidth>(rows + 4 * t.channels, column, level);  // few registers
#pragma unroll
        for (int e = 0; e < VEC; ++e) {
          int i = CHANNELS_LAST ? e : 0;
          float u = packs.x.value(e) - row.at[i];
          float g = row.through(u, packs.grad.value(e), i);
          results[e] = row.gain[i] * g + (slope[i] * u + level[i]);
        }
        out.write(j, NormPack<T, VEC>::of(results));
      });
}

// COPIED: packs come into shared memory past the registers, of which a multiprocessor then has
// enough for more blocks of all threads. Smaller blocks were faster without (on an H200).
template <typename T, int VEC, bool CHANNELS_LAST, bool COPIED>
__global__ void __launch_bounds__(kNormThreads, COPIED ? kOnchipBlocks<VEC> : kNormBlocks)
    backward_onchip_kernel(AdaGroupNormBackwardArgs b, NormCut cut) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(cut, a.pixels);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  auto* means = reinterpret_cast<double*>(shared);  // [2][groups]
  float* scratch = shared + 4 * t.groups;
  float* rows = scratch + norm_sum_floats(3, cut);  // [5][channels]
  float* sums = rows + 5 * t.channels;              // [3][channels], read by the cluster
  float* totals = sums + 3 * t.channels;            // [3][channels]
  int used = 4 * t.groups + norm_sum_floats(3, cut) + 11 * t.channels;
  auto* x_cache = reinterpret_cast<NormPack<T, VEC>*>(shared + (used + 3) / 4 * 4);
  auto* grad_cache = x_cache + t.channels * min(cut.part_pixels, int(a.pixels)) / VEC;
  load_rows(a, t, rows);
  __syncthreads();
  column_sums<3, VEC, CHANNELS_LAST>(
      cut, t, scratch, [&](int column, float (&own)[3][CHANNELS_LAST ? VEC : 1]) {
        NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
        NormPacks<const T, VEC> grad = incoming_packs<T, VEC, CHANNELS_LAST>(b, t, column);
        const NormSlots slots = cache_slots<CHANNELS_LAST>(t, column);
        auto each = [&](int count, const auto& use) {
          if constexpr (COPIED) {
            each_copied_pack<kPairs / 2>(
                count,
                [&](int j) {
                  start_copy(x_cache + slots(j), x.where(j));
                  start_copy(grad_cache + slots(j), grad.where(j));
                },
                [&](int j) {
                  return GradientPacks<T, VEC>{x_cache[slots(j)], grad_cache[slots(j)]};
                },
                [] {}, [&](int, const GradientPacks<T, VEC>& packs) { use(packs); });
          } else {
            each_pack<kPairs>(
                count, [&](int j) { return read_pair<T, VEC>(x, grad, j); },
                [&](int j, const GradientPacks<T, VEC>& packs) {
                  x_cache[slots(j)] = packs.x;
                  grad_cache[slots(j)] = packs.grad;
                  use(packs);
                });
          }
        };
        add_sums<T, VEC, CHANNELS_LAST>(a, t, rows, column, each, own);
      });
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * t.channels; i += blockDim.x) {
    sums[i] = sum_of(cut, t, scratch, 0, i);
  }
  __syncthreads();
  if (cut.parts > 1) {
    meet_cluster();
    for (int i = threadIdx.x; i < 3 * t.channels; i += blockDim.x) {
      float total = 0;
      for (int rank = 0; rank < cut.parts; ++rank) total += shared_of(sums, rank)[i];
      totals[i] = total;
    }
    __syncthreads();
  }
  const float* all = cut.parts > 1 ? totals : sums;
  finish_sums(b, t, [&](int k, int c) { return all[k * t.channels + c]; }, means, rows);
  each_column(t, [&](int column) {
    const NormSlots slots = cache_slots<CHANNELS_LAST>(t, column);
    write_grads<COPIED, T, VEC, CHANNELS_LAST>(b, t, rows, column, [&](int j) {
      return GradientPacks<T, VEC>{x_cache[slots(j)], grad_cache[slots(j)]};
    });
  });
  if (cut.parts > 1) leave_cluster();
}

// One part's sums: workspace[((k * samples + sample) * channels + channel) * parts + part].
template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    sums_kernel(AdaGroupNormBackwardArgs b, float* workspace, NormCut cut) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(cut, a.pixels);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* rows = shared + norm_sum_floats(3, cut);  // [4][channels]
  load_rows(a, t, rows);
  __syncthreads();
  int64_t channels = a.channels1 + a.channels2;
  column_sums<3, VEC, CHANNELS_LAST>(
      cut, t, shared, [&](int column, float (&own)[3][CHANNELS_LAST ? VEC : 1]) {
        NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
        NormPacks<const T, VEC> grad = incoming_packs<T, VEC, CHANNELS_LAST>(b, t, column);
        auto each = [&](int count, const auto& use) {
          each_pack<kPairs>(
              count, [&](int j) { return read_pair<T, VEC>(x, grad, j); },
              [&](int, const GradientPacks<T, VEC>& packs) { use(packs); });
        };
        add_sums<T, VEC, CHANNELS_LAST>(a, t, rows, column, each, own);
      });
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    int64_t row = (k * a.samples + t.sample) * channels + t.first_channel;
    for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
      workspace[(row + c) * cut.parts + t.part] = sum_of(cut, t, shared, k, c);
    }
  }
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    grad_kernel(AdaGroupNormBackwardArgs b, const float* __restrict__ workspace, NormCut cut) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(cut, a.pixels);
  LDDGAN_DYNAMIC_SHARED(double, means);                         // [2][groups]
  auto* rows = reinterpret_cast<float*>(means + 2 * t.groups);  // [5][channels]
  load_rows(a, t, rows);
  const int64_t channels = a.channels1 + a.channels2;
  const int64_t first = t.first_channel - t.skipped;
  finish_sums(
      b, t,
      [&](int k, int c) {
        const int64_t row = (k * a.samples + t.sample) * channels + first + c;
        float total = 0;
        for (int part = 0; part < cut.parts; ++part) total += workspace[row * cut.parts + part];
        return total;
      },
      means, rows);
  each_column(t, [&](int column) {
    NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
    NormPacks<const T, VEC> grad = incoming_packs<T, VEC, CHANNELS_LAST>(b, t, column);
    write_grads<false, T, VEC, CHANNELS_LAST>(b, t, rows, column,
                                              [&](int j) { return read_pair<T, VEC>(x, grad, j); });
  });
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_backward(const AdaGroupNormBackwardArgs& b, const AdaGroupNormPlan& plan,
                            void* stream) {
  if (plan.onchip) {
    NormLaunch n = norm_launch<T, VEC, CHANNELS_LAST>(b.forward, plan, kWhole, 2);
    size_t floats = 4 * plan.groups + norm_sum_floats(3, n.cut) + 11 * size_t(n.cut.channels);
    auto kernel = backward_onchip_kernel<T, VEC, CHANNELS_LAST, false>;
    if constexpr (VEC * sizeof(T) == 16) {
      if (n.threads == kNormThreads) {
        kernel = backward_onchip_kernel<T, VEC, CHANNELS_LAST, true>;
      }
    }
    return launch_kernel(kernel, n.blocks, n.threads, (floats + 3) / 4 * 16 + 2 * n.tile_bytes,
                         stream, unsigned(plan.parts), b, n.cut);
  }
  NormLaunch n = norm_launch<T, VEC, CHANNELS_LAST>(b.forward, plan, kNormWidth, 2);
  cudaError_t error = launch_kernel(sums_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                                    (norm_sum_floats(3, n.cut) + 4 * size_t(n.cut.width)) * 4,
                                    stream, 1, b, plan.workspace, n.cut);
  if (error != cudaSuccess) return error;
  return launch_kernel(grad_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                       size_t(5 * n.cut.width + 4 * plan.groups) * 4, stream, 1, b, plan.workspace,
                       n.cut);
}

}  // namespace

int ada_group_norm_backward_cuda(const AdaGroupNormBackwardArgs& b, const AdaGroupNormPlan& plan,
                                 void* stream) {
  AdaGroupNormArgs outputs = b.forward;  // the other pointers, asked the same question
  outputs.x = b.grad_x;
  outputs.x2 = b.grad_x2;
  outputs.out = const_cast<void*>(b.grad_out);
  return visit_packs(
      b.forward.dtype, b.forward.channels_last,
      [&](auto vec) {
        return norm_can_pack<vec()>(b.forward, plan.groups) &&
               norm_can_pack<vec()>(outputs, plan.groups);
      },
      [&](auto* type, auto vec, auto channels_last) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch_backward<T, vec(), channels_last()>(b, plan, stream);
      });
}

}  // namespace lddgan
