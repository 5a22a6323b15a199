// The residual sum with the partial moments of its result, which the next norm needs: the addends
// are read once. Tiles as in ada_group_norm.cuh.
#include "lddgan/residual_scale.h"
#include "part_moments.cuh"

namespace lddgan {

namespace {

constexpr int kAddends = 2;  // packs of each addend, that a thread loads before it uses the first

template <typename T>
struct Addends {
  const T *x, *h, *h2;
  ChannelRows bias;
  float factor;
};

template <typename T, int VEC>
struct AddendPacks {
  NormPack<T, VEC> x, h, h2;
};

// A column of the result, as part_moments reads it: written, and rounded as it was written.
template <typename T, int VEC, bool CHANNELS_LAST>
struct SumColumn {
  static constexpr bool kCopied = false;
  static constexpr int kWidth = CHANNELS_LAST ? VEC : 1;
  NormPacks<const T, VEC> x, h, h2;
  NormPacks<T, VEC> out;
  bool two;
  float factor;
  float added[kWidth];

  __device__ __forceinline__ SumColumn(const Addends<T>& a, T* image, const NormTile& t,
                                       int64_t channels, int64_t pixels, int column)
      : two(a.h2 != nullptr), factor(a.factor) {
    int channel = t.first_channel + column * kWidth;
    x = column_packs<VEC, CHANNELS_LAST>(a.x, t, channels, pixels, channel);
    h = column_packs<VEC, CHANNELS_LAST>(a.h, t, channels, pixels, channel);
    h2 = column_packs<VEC, CHANNELS_LAST>(two ? a.h2 : a.x, t, channels, pixels, channel);
    out = column_packs<VEC, CHANNELS_LAST>(image, t, channels, pixels, channel);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      added[e] = a.bias.data != nullptr ? read_row(a.bias, 0, channel + e) : 0.0f;
    }
  }
  __device__ __forceinline__ AddendPacks<T, VEC> read(int j) const {
    AddendPacks<T, VEC> packs{x.read(j), h.read(j), {}};
    if (two) packs.h2 = h2.read(j);
    return packs;
  }
  __device__ __forceinline__ AddendPacks<T, VEC> read_away(int by) const {
    AddendPacks<T, VEC> packs{x.read_away(by), h.read_away(by), {}};
    if (two) packs.h2 = h2.read_away(by);
    return packs;
  }
  __device__ __forceinline__ NormPack<T, VEC> sum(const AddendPacks<T, VEC>& packs) const {
    float results[VEC];
#pragma unroll
    for (int e = 0; e < VEC; ++e) {
      float sum = packs.h.value(e) + added[CHANNELS_LAST ? e : 0];
      sum += packs.x.value(e);
      if (two) sum += packs.h2.value(e);
      results[e] = sum * factor;
    }
    return NormPack<T, VEC>::of(results);
  }
  __device__ __forceinline__ void keep(int j, const NormPack<T, VEC>& pack) const {
    out.write(j, pack);
  }
};

template <typename T, int VEC, bool CHANNELS_LAST>
__global__ void __launch_bounds__(kNormThreads, kNormBlocks)
    residual_moments_kernel(Addends<T> a, T* __restrict__ out, float* __restrict__ partial,
                            int channels, int pixels, NormCut cut) {
  NormTile t = norm_tile<VEC, CHANNELS_LAST>(cut, pixels);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  part_moments<VEC, CHANNELS_LAST, kAddends>(
      cut, t, shared,
      [&](int column) {
        return SumColumn<T, VEC, CHANNELS_LAST>(a, out, t, channels, pixels, column);
      },
      [] {}, [](int) { return 0.0f; },
      [&](int g, const Moments& all) { store_part(partial, cut, t, g, all); });
}

template <typename T, int VEC, bool CHANNELS_LAST>
cudaError_t run(const ResidualScaleMomentsArgs& m, void* stream) {
  const ResidualScaleArgs& s = m.sum;
  NormLaunch n = norm_launch<T, VEC, CHANNELS_LAST>(m.samples, s.channels, m.groups, m.pixels,
                                                    m.block_groups, m.parts);
  Addends<T> a{static_cast<const T*>(s.x),
               static_cast<const T*>(s.h),
               static_cast<const T*>(s.h2),
               {s.bias, 0, s.bias_dtype},
               s.factor};
  return launch_kernel(residual_moments_kernel<T, VEC, CHANNELS_LAST>, n.blocks, n.threads,
                       norm_moments_floats(n.cut) * 4, stream, 1, a, static_cast<T*>(s.out),
                       m.moments, int(s.channels), int(m.pixels), n.cut);
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
