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

__device__ __forceinline__ Center saved_center(const AdaGroupNormArgs& a, const NormTile& t,
                                               int channel) {
  float mean = a.mean[t.sample * a.groups + t.first_group + t.group_of(channel)];
  return center_of(mean, bias_of(a, t, channel));
}

__device__ __forceinline__ float saved_rstd(const AdaGroupNormArgs& a, const NormTile& t, int g) {
  return a.rstd[t.sample * a.groups + t.first_group + g];
}

// What the loops read of the tile's channels, [3][channels]: at, gain, shift; no barrier.
__device__ __forceinline__ void load_rows(const AdaGroupNormArgs& a, const NormTile& t,
                                          float* rows) {
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    NormRow row = norm_row(a, t, c, saved_center(a, t, c), 0, saved_rstd(a, t, t.group_of(c)));
    rows[c] = row.at;
    rows[t.channels + c] = row.gain;
    rows[2 * t.channels + c] = row.shift;
  }
}

template <int WIDTH>
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
    float y = u * gain[i] + shift[i], s = sigmoid(y), slope = s * (1.0f + y * (1.0f - s));
    return grad * (silu ? slope : 1.0f);  // chosen, not branched: elements overlap
  }
};

// Adds the sums of g * u, g and u of the packs that load(j) gives and keep(j, packs) takes.
template <typename T, int VEC, bool CHANNELS_LAST, typename Load, typename Keep>
__device__ __forceinline__ void add_sums(const AdaGroupNormArgs& a, const NormTile& t,
                                         const float* rows, int column, const Load& load,
                                         const Keep& keep, float* sums) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  ColumnRows<kWidth> row(a, t, rows, column);
  each_pack<kPairs>(t.count, load, [&](int j, const GradientPacks<T, VEC>& packs) {
    keep(j, packs);
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
      int i = CHANNELS_LAST ? e : 0;
      float u = packs.x.value(e) - row.at[i];
      float g = row.through(u, packs.grad.value(e), i);
      sums[i] += g * u;
      sums[kWidth + i] += g;
      sums[2 * kWidth + i] += u;
    }
  });
}

// From the sums over all positions of channel c of the group (of g * u, g and u) those of
// g * x_hat, g and x_hat.
__device__ __forceinline__ void normalise_sums(float missed, float rstd, float pixels,
                                               float (&sums)[3]) {
  sums[0] = (sums[0] + missed * sums[1]) * rstd;
  sums[2] = (sums[2] + missed * pixels) * rstd;
}

// The gradients of scale, shift and bias of a channel of the tile, by the first part's block.
// `means`: of scale * g * x_hat and of scale * g over the channel's group.
__device__ __forceinline__ void write_rows(const AdaGroupNormBackwardArgs& b, const NormTile& t,
                                           int c, const float (&sums)[3], double mean_gx,
                                           double mean_g, float rstd) {
  const AdaGroupNormArgs& a = b.forward;
  if (t.part != 0) return;
  int channel = t.first_channel + c;
  int64_t i = t.sample * (a.channels1 + a.channels2) + channel;
  write_value(b.grad_scale, b.grad_scale_dtype, i, sums[0]);
  write_value(b.grad_shift, b.grad_shift_dtype, i, sums[1]);
  if (b.grad_bias != nullptr && channel < a.channels1) {
    // Large terms that cancel.
    double scale = read_row(a.scale, t.sample, channel);
    double value = scale * sums[1] - mean_g * double(a.pixels) - mean_gx * sums[2];
    write_value(b.grad_bias, b.grad_bias_dtype, t.sample * a.channels1 + channel,
                float(value * rstd));
  }
}

// grad_x = gain * g + slope * u + level, of the packs that load(j) gives; `rows` [5][channels].
template <typename T, int VEC, bool CHANNELS_LAST, typename Load>
__device__ __forceinline__ void write_grads(const AdaGroupNormBackwardArgs& b, const NormTile& t,
                                            const float* rows, int column, const Load& load) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  const AdaGroupNormArgs& a = b.forward;
  ColumnRows<kWidth> row(a, t, rows, column);
  float slope[kWidth], level[kWidth];
  read_column<kWidth>(rows + 3 * t.channels, column, slope);
  read_column<kWidth>(rows + 4 * t.channels, column, level);
  NormPacks<T, VEC> out = split_packs<VEC, CHANNELS_LAST>(static_cast<T*>(b.grad_x),
                                                          static_cast<T*>(b.grad_x2), a, t, column);
  each_pack<kPairs>(t.count, load, [&](int j, const GradientPacks<T, VEC>& packs) {
    float results[VEC];
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

// The rows of a channel that write_grads adds.
__device__ __forceinline__ void put_slope(float* rows, const NormTile& t, int c, float missed,
                                          float mean_gx, float mean_g, float rstd) {
  float slope = -rstd * rstd * mean_gx;
  rows[3 * t.channels + c] = slope;
  rows[4 * t.channels + c] = slope * missed - rstd * mean_g;
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 2)
    backward_onchip_kernel(AdaGroupNormBackwardArgs b, int groups, int parts, int scratch_floats) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts, kWhole);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  auto* means = reinterpret_cast<double*>(shared);  // [2][groups]
  float* scratch = shared + 4 * t.groups;
  float* rows = scratch + scratch_floats;  // [5][channels]
  float* sums = rows + 5 * t.channels;     // [3][channels], read by the cluster
  float* totals = sums + 3 * t.channels;   // [3][channels]
  int used = 4 * t.groups + scratch_floats + 11 * t.channels;
  auto* x_cache = reinterpret_cast<NormPack<T, VEC>*>(shared + (used + 3) / 4 * 4);
  auto* grad_cache = x_cache + t.channels * norm_held_pixels(a.pixels, parts) / VEC;
  load_rows(a, t, rows);
  __syncthreads();
  column_sums<3, VEC, CHANNELS_LAST>(
      t, scratch,
      [&](int column, float* own) {
        NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
        NormPacks<const T, VEC> grad = incoming_packs<T, VEC, CHANNELS_LAST>(b, t, column);
        const int slot = t.slot(column);
        add_sums<T, VEC, CHANNELS_LAST>(
            a, t, rows, column, [&](int j) { return read_pair<T, VEC>(x, grad, j); },
            [&](int j, const GradientPacks<T, VEC>& packs) {
              x_cache[slot + j * t.slot_step] = packs.x;
              grad_cache[slot + j * t.slot_step] = packs.grad;
            },
            own);
      },
      [&](int k, int c, float total) { sums[k * t.channels + c] = total; });
  cluster_sums(sums, totals, 3 * t.channels, parts);
  const float pixels = float(a.pixels);
  const double count = double(t.cpg) * pixels;
  auto sums_of = [&](int c, float (&of)[3]) {
#pragma unroll
    for (int k = 0; k < 3; ++k) of[k] = totals[k * t.channels + c];
    normalise_sums(saved_center(a, t, c).missed, saved_rstd(a, t, t.group_of(c)), pixels, of);
  };
  group_sums<2>(t.groups, t.cpg, means, [&](int k, int c) {
    float of[3];
    sums_of(c, of);
    return double(read_row(a.scale, t.sample, t.first_channel + c)) * (k == 0 ? of[0] : of[1]) /
           count;
  });
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    int g = t.group_of(c);
    float of[3], rstd = saved_rstd(a, t, g);
    double mean_gx = means[g], mean_g = means[t.groups + g];
    sums_of(c, of);
    write_rows(b, t, c, of, mean_gx, mean_g, rstd);
    put_slope(rows, t, c, saved_center(a, t, c).missed, float(mean_gx), float(mean_g), rstd);
  }
  __syncthreads();
  each_column(t, [&](int column) {
    const int slot = t.slot(column);
    write_grads<T, VEC, CHANNELS_LAST>(b, t, rows, column, [&](int j) {
      int i = slot + j * t.slot_step;
      return GradientPacks<T, VEC>{x_cache[i], grad_cache[i]};
    });
  });
}

// One part's sums: workspace[((k * samples + sample) * channels + channel) * parts + part].
template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 2)
    sums_kernel(AdaGroupNormBackwardArgs b, float* workspace, int groups, int parts, int width,
                int scratch_floats) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts, width);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  float* scratch = shared;
  float* rows = scratch + scratch_floats;  // [3][channels]
  load_rows(a, t, rows);
  __syncthreads();
  int64_t channels = a.channels1 + a.channels2;
  column_sums<3, VEC, CHANNELS_LAST>(
      t, scratch,
      [&](int column, float* own) {
        NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
        NormPacks<const T, VEC> grad = incoming_packs<T, VEC, CHANNELS_LAST>(b, t, column);
        add_sums<T, VEC, CHANNELS_LAST>(
            a, t, rows, column, [&](int j) { return read_pair<T, VEC>(x, grad, j); },
            [](int, const GradientPacks<T, VEC>&) {}, own);
      },
      [&](int k, int c, float total) {
        int64_t row = (k * a.samples + t.sample) * channels + t.first_channel + c;
        workspace[row * parts + t.part] = total;
      });
}

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, 2)
    grad_kernel(AdaGroupNormBackwardArgs b, const float* __restrict__ workspace, int groups,
                int parts, int width) {
  const AdaGroupNormArgs& a = b.forward;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(a, groups, parts, width);
  LDDGAN_DYNAMIC_SHARED(double, means);                         // [2][groups]
  auto* rows = reinterpret_cast<float*>(means + 2 * t.groups);  // [5][channels]
  load_rows(a, t, rows);
  const float pixels = float(a.pixels);
  const double count = double(t.cpg) * pixels;
  auto sums_of = [&](int c, float (&of)[3]) {
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      int64_t row = (k * a.samples + t.sample) * (a.channels1 + a.channels2) + t.first_channel + c;
      of[k] = 0;
      for (int part = 0; part < parts; ++part) of[k] += workspace[row * parts + part];
    }
    normalise_sums(saved_center(a, t, c).missed, saved_rstd(a, t, t.group_of(c)), pixels, of);
  };
  // Of whole groups, though the tile may have a chunk of one.
  group_sums<2>(t.groups, t.cpg, means, [&](int k, int channel) {
    int c = channel - t.skipped;
    float of[3];
    sums_of(c, of);
    return double(read_row(a.scale, t.sample, t.first_channel + c)) * (k == 0 ? of[0] : of[1]) /
           count;
  });
  for (int c = threadIdx.x; c < t.channels; c += blockDim.x) {
    int g = t.group_of(c);
    float of[3], rstd = saved_rstd(a, t, g);
    double mean_gx = means[g], mean_g = means[t.groups + g];
    sums_of(c, of);
    write_rows(b, t, c, of, mean_gx, mean_g, rstd);
    put_slope(rows, t, c, saved_center(a, t, c).missed, float(mean_gx), float(mean_g), rstd);
  }
  __syncthreads();
  each_column(t, [&](int column) {
    NormPacks<const T, VEC> x = source_packs<T, VEC, CHANNELS_LAST>(a, t, column);
    NormPacks<const T, VEC> grad = incoming_packs<T, VEC, CHANNELS_LAST>(b, t, column);
    write_grads<T, VEC, CHANNELS_LAST>(b, t, rows, column,
                                       [&](int j) { return read_pair<T, VEC>(x, grad, j); });
  });
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t launch_backward(const AdaGroupNormBackwardArgs& b, const AdaGroupNormPlan& plan,
                            void* stream) {
  NormLaunch n = norm_launch<T, VEC>(b.forward, plan);
  if (plan.onchip) {
    int scratch = norm_sum_floats(3, n.threads, n.channels, VEC, CHANNELS_LAST);
    int floats = 4 * plan.groups + scratch + 11 * n.channels;
    return launch_kernel(backward_onchip_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                         (floats + 3) / 4 * 16 + 2 * n.tile_bytes, stream, unsigned(plan.parts), b,
                         plan.groups, plan.parts, scratch);
  }
  int scratch = norm_sum_floats(3, n.threads, n.width, VEC, CHANNELS_LAST);
  cudaError_t error = launch_kernel(sums_kernel<T, VEC, CHANNELS_LAST>, n.blocks * n.chunks,
                                    n.threads, size_t(scratch + 3 * n.width) * 4, stream, 1, b,
                                    plan.workspace, plan.groups, plan.parts, n.width, scratch);
  if (error != cudaSuccess) return error;
  return launch_kernel(grad_kernel<T, VEC, CHANNELS_LAST>, n.blocks * n.chunks, n.threads,
                       size_t(5 * n.width + 4 * plan.groups) * 4, stream, 1, b, plan.workspace,
                       plan.groups, plan.parts, n.width);
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
