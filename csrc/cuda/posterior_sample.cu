#include "lddgan/posterior_sample.h"

#include "normal.cuh"

namespace lddgan {

namespace {

struct PosteriorSample {
  PosteriorSampleArgs a;

  template <typename Tile>
  __device__ void run(int64_t sample, const Tile& tile) const {
    constexpr int kCount = Tile::kCount;
    int64_t t = a.t[sample];
    float c1 = table_at(a.coef1, t, a.num_steps), c2 = table_at(a.coef2, t, a.num_steps);
    float out[kCount], other[kCount];
    tile.load(a.x0, out);
    tile.load(a.x_next, other);
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = c1 * out[i] + c2 * other[i];
    if (t != 0) {
      float deviation = expf(0.5f * table_at(a.log_variance, t, a.num_steps));
      if (a.seeds != nullptr) {
        tile.noise(a.seeds[sample], a.stream, a.step, other);
      } else {
        tile.load(a.noise, other);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) out[i] += deviation * other[i];
    }
    tile.store(a.out, out);
  }
};

struct PosteriorSampleBackward {
  PosteriorSampleBackwardArgs a;

  template <typename Tile>
  __device__ void run(int64_t sample, const Tile& tile) const {
    int64_t t = a.t[sample];
    float c1 = table_at(a.coef1, t, a.num_steps), c2 = table_at(a.coef2, t, a.num_steps);
    float grad[Tile::kCount], scaled[Tile::kCount];
    tile.load(a.grad, grad);
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) scaled[i] = c1 * grad[i];
    tile.store(a.grad_x0, scaled);
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) scaled[i] = c2 * grad[i];
    tile.store(a.grad_x_next, scaled);
  }
};

}  // namespace

int posterior_sample_cuda(const PosteriorSampleArgs& a, void* stream) {
  bool aligned = all_aligned(a.x0, a.x_next, a.noise, a.out);
  return run_tiles(PosteriorSample{a}, a.batch, a.dtype, aligned, stream);
}

int posterior_sample_backward_cuda(const PosteriorSampleBackwardArgs& a, void* stream) {
  bool aligned = all_aligned(a.grad, a.grad_x0, a.grad_x_next);
  Batch batch = {a.samples, 1, a.size, false};  // elementwise: the layout does not matter
  return run_tiles(PosteriorSampleBackward{a}, batch, a.dtype, aligned, stream);
}

}  // namespace lddgan
