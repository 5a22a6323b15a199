#include "lddgan/seeded_normal.h"

#include "normal.cuh"

namespace lddgan {

namespace {

struct SeededNormal {
  SeededNormalArgs a;

  template <typename Tile>
  __device__ void run(int64_t sample, const Tile& tile) const {
    float noise[Tile::kCount];
    tile.noise(a.seeds[sample], a.stream, a.step, noise);
    tile.store(a.out, noise);
  }
};

}  // namespace

int seeded_normal_cuda(const SeededNormalArgs& a, void* stream) {
  return run_tiles(SeededNormal{a}, a.batch, a.dtype, all_aligned(a.out), stream);
}

}  // namespace lddgan
