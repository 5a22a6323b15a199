// The residual sum with the partial moments of its result, which the next norm needs: the addends
// are read once. Tiles as in ada_group_norm.cuh.
//
// Each warp (or thread, where warps share no column) sums deviations from a pivot: the mean of the
// first packs that it reads. So data far from zero keeps its digits without a second reading. The
// moments around the pivots are merged in shared memory; every slot has one writer.
#include <algorithm>

#include "ada_group_norm.cuh"
#include "lddgan/residual_scale.h"

namespace lddgan {

namespace {

constexpr int kThreads = 256;  // the most of a block

template <typename T>
struct Addends {
  const T *x, *h, *h2;
  ChannelRows bias;
  float factor;
};

// Writes one pack of the result and leaves it in `values`, as it was rounded. `bias`: of its
// channels, one or VEC.
template <typename T, int VEC, bool CHANNELS_LAST>
__device__ __forceinline__ void add_pack(const Addends<T>& a, T* out, int64_t offset,
                                         const float* bias, float* values) {
  float more[VEC];
  load_floats<VEC>(a.h + offset, values);
  load_floats<VEC>(a.x + offset, more);
#pragma unroll
  for (int e = 0; e < VEC; ++e) values[e] = (values[e] + bias[CHANNELS_LAST ? e : 0]) + more[e];
  if (a.h2 != nullptr) {
    load_floats<VEC>(a.h2 + offset, more);
#pragma unroll
    for (int e = 0; e < VEC; ++e) values[e] += more[e];
  }
#pragma unroll
  for (int e = 0; e < VEC; ++e) values[e] *= a.factor;
  store_floats<VEC>(out + offset, values);
#pragma unroll
  for (int e = 0; e < VEC; ++e) values[e] = device_float(from_float<T>(values[e]));
}

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

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kThreads, 3)
    residual_moments_kernel(Addends<T> a, T* __restrict__ out, float* __restrict__ partial,
                            int channels, int all_groups, int pixels, int groups, int parts) {
  constexpr int kWidth = CHANNELS_LAST ? VEC : 1, kStep = CHANNELS_LAST ? 1 : VEC;
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(channels, all_groups, pixels, groups, parts);
  LDDGAN_DYNAMIC_SHARED(float, counts);  // [writers][channels] each
  float* means = counts + t.writers * t.channels;
  float* squares = means + t.writers * t.channels;
  const int lane = CHANNELS_LAST ? 0 : threadIdx.x % t.lanes;
  const int first = lane + t.lanes * t.slice, step = t.lanes * t.slices;
  const int limit = CHANNELS_LAST ? t.end - t.begin : (t.end - t.begin + VEC - 1) / VEC;
  for (int column = t.column; column < t.columns && !t.idle; column += t.column_step) {
    const int channel = t.first_channel + column * kWidth;
    float bias[kWidth] = {};
    if (a.bias.data != nullptr) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) bias[e] = read_row(a.bias, 0, channel + e);
    }
    float values[VEC], pivot[kWidth] = {}, sums[kWidth] = {}, more[kWidth] = {};
    float count = 0;
    auto read = [&](int i) {
      int64_t offset =
          image_offset<CHANNELS_LAST>(t.sample, channels, pixels, channel, t.begin + i * kStep);
      add_pack<T, VEC, CHANNELS_LAST>(a, out, offset, bias, values);
      count += kStep;
    };
    auto add = [&] {
#pragma unroll
      for (int e = 0; e < VEC; ++e) {
        float away = values[e] - pivot[CHANNELS_LAST ? e : 0];
        sums[CHANNELS_LAST ? e : 0] += away;
        more[CHANNELS_LAST ? e : 0] += away * away;
      }
    };
    if (first < limit) {
      read(first);
#pragma unroll
      for (int e = 0; e < VEC; ++e) pivot[CHANNELS_LAST ? e : 0] += values[e];
    }
    float reading = fmaxf(column_total<CHANNELS_LAST>(t, count), 1.0f);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      pivot[e] = column_total<CHANNELS_LAST>(t, pivot[e]) / reading;
    }
    if (first < limit) add();
    for (int i = first + step; i < limit; i += step) {
      read(i);
      add();
    }
    count = column_total<CHANNELS_LAST>(t, count);
    // The lanes hold the same.
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      int slot = t.writer * t.channels + column * kWidth + e;
      float sum = column_total<CHANNELS_LAST>(t, sums[e]), missed = sum / fmaxf(count, 1.0f);
      counts[slot] = count;
      means[slot] = pivot[e] + missed;
      squares[slot] = column_total<CHANNELS_LAST>(t, more[e]) - sum * missed;
    }
  }
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
      int64_t i = ((t.sample * all_groups + t.first_group + g) * parts + t.part) * 2;
      partial[i] = all.mean + all.missed;
      partial[i + 1] = fmaxf(all.squares, 0.0f);
    }
  }
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t run(const ResidualScaleMomentsArgs& m, void* stream) {
  const ResidualScaleArgs& s = m.sum;
  int channels = int(s.channels / m.groups) * m.block_groups;
  int threads =
      std::min(kThreads, norm_threads(channels * norm_held_pixels(m.pixels, m.parts) / VEC));
  unsigned blocks = unsigned(m.samples * (m.groups / m.block_groups) * m.parts);
  Addends<T> a{static_cast<const T*>(s.x),
               static_cast<const T*>(s.h),
               static_cast<const T*>(s.h2),
               {s.bias, 0, s.bias_dtype},
               s.factor};
  return launch_kernel(residual_moments_kernel<T, VEC, CHANNELS_LAST>, blocks, threads,
                       size_t(norm_sum_floats(3, threads, channels, VEC, CHANNELS_LAST)) * 4,
                       stream, 1, a, static_cast<T*>(s.out), m.moments, int(s.channels),
                       int(m.groups), int(m.pixels), m.block_groups, m.parts);
}

}  // namespace

int residual_scale_moments_cuda(const ResidualScaleMomentsArgs& m, void* stream) {
  const ResidualScaleArgs& s = m.sum;
  auto fits = [&](auto vec) {  // packs of whole channels, or of positions
    for (const void* p : {s.x, s.h, s.h2, static_cast<const void*>(s.out)}) {
      if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;
    }
    if (!m.channels_last) return m.pixels % vec == 0;
    return s.channels % vec == 0 && s.channels / m.groups * m.block_groups % vec == 0;
  };
  return visit_packs(s.dtype, m.channels_last, fits, [&](auto* type, auto vec, auto channels_last) {
    using T = std::remove_pointer_t<decltype(type)>;
    return run<T, vec(), channels_last()>(m, stream);
  });
}

}  // namespace lddgan
