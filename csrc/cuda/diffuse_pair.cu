#include "lddgan/diffuse_pair.h"

#include "normal.cuh"

namespace lddgan {

namespace {

struct DiffusePair {
  DiffusePairArgs a;

  template <typename Tile>
  __device__ void run(int64_t sample, const Tile& tile) const {
    constexpr int kCount = Tile::kCount;
    int64_t t = a.t[sample];
    float x[kCount], noise[kCount];
    tile.load(a.x0, x);
    make(a.noise_t, a.stream_t, sample, tile, noise);
    float scale = table_at(a.a_s_cum, t, a.num_steps);
    float sigma = table_at(a.sigmas_cum, t, a.num_steps);
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = scale * x[i] + sigma * noise[i];
    tile.store(a.x_t, x);
    make(a.noise_next, a.stream_next, sample, tile, noise);
    scale = table_at(a.a_s, t, a.num_steps, 1);
    sigma = table_at(a.sigmas, t, a.num_steps, 1);
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = scale * x[i] + sigma * noise[i];
    tile.store(a.x_next, x);
  }

  template <typename Tile>
  __device__ __forceinline__ void make(const void* given, uint32_t stream, int64_t sample,
                                       const Tile& tile, float (&noise)[Tile::kCount]) const {
    if (a.seeds != nullptr) {
      tile.noise(a.seeds[sample], stream, a.step, noise);
    } else {
      tile.load(given, noise);
    }
  }
};

}  // namespace

int diffuse_pair_cuda(const DiffusePairArgs& a, void* stream) {
  bool aligned = all_aligned(a.x0, a.noise_t, a.noise_next, a.x_t, a.x_next);
  return run_tiles(DiffusePair{a}, a.batch, a.dtype, aligned, stream);
}

}  // namespace lddgan
