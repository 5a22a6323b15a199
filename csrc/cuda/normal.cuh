// Seeded noise for the .cu files: tiles of a batch, each one thread's, and their noise.
#pragma once

#include "cuda.cuh"
#include "lddgan/philox.h"
#include "lddgan/seeded_normal.h"

namespace lddgan {

constexpr int kTileThreads = 256;

// Normals of one counter: elements 4 * counter to 4 * counter + 3 of a sample.
__device__ __forceinline__ void normal4(int64_t seed, uint32_t counter, uint32_t stream,
                                        uint32_t step, float (&out)[4]) {
  uint32_t words[4] = {counter, stream, step, 0};
  philox4x32(words, uint32_t(seed), uint32_t(uint64_t(seed) >> 32));
  box_muller<ScalarMath>(words[0], words[1], out[0], out[1]);
  box_muller<ScalarMath>(words[2], words[3], out[2], out[3]);
}

// What one thread works on: kCount elements of a sample, held in memory order.
//
// Of kChannels > 0: Pack<T>::kSize pixels of all kChannels channels, which are kChannels packs in
// channels_last; a contiguous sample is read as one channel.
template <typename T, int kChannels>
struct Tile {
  static constexpr int kSize = Pack<T>::kSize;
  static constexpr int kCount = kSize * kChannels;
  int64_t offset;  // in the batch
  int64_t pixel;
  int64_t pixels;

  static __host__ __device__ int64_t count(const Batch& batch) {
    return batch.channels * batch.pixels / kCount;
  }

  __device__ __forceinline__ Tile(const Batch& batch, int64_t sample, int64_t tile)
      : offset(sample * batch.channels * batch.pixels + tile * kCount),
        pixel(tile * kSize),
        pixels(batch.channels * batch.pixels / kChannels) {}

  __device__ __forceinline__ void load(const void* from, float (&values)[kCount]) const {
    const Pack<T>* packs = reinterpret_cast<const Pack<T>*>(static_cast<const T*>(from) + offset);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      Pack<T> pack = packs[k];
#pragma unroll
      for (int i = 0; i < kSize; ++i) values[k * kSize + i] = device_float(pack.data[i]);
    }
  }

  __device__ __forceinline__ void store(void* to, const float (&values)[kCount]) const {
    Pack<T>* packs = reinterpret_cast<Pack<T>*>(static_cast<T*>(to) + offset);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < kSize; ++i) pack.data[i] = from_float<T>(values[k * kSize + i]);
      packs[k] = pack;
    }
  }

  __device__ __forceinline__ void noise(int64_t seed, uint32_t stream, uint32_t step,
                                        float (&values)[kCount]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int i = 0; i < kSize; i += 4) {
        float four[4];
        normal4(seed, uint32_t((c * pixels + pixel + i) / 4), stream, step, four);
#pragma unroll
        for (int j = 0; j < 4; ++j) values[(i + j) * kChannels + c] = four[j];
      }
    }
  }
};

// kChannels == 0: any layout, size and alignment; the elements of one counter, one by one.
template <typename T>
struct Tile<T, 0> {
  static constexpr int kCount = 4;
  Batch batch;
  int64_t base;   // the sample's offset in the batch
  int64_t first;  // of the elements, in logical order

  static __host__ __device__ int64_t count(const Batch& batch) {
    return (batch.channels * batch.pixels + 3) / 4;
  }

  __device__ __forceinline__ Tile(const Batch& batch, int64_t sample, int64_t tile)
      : batch(batch), base(sample * batch.channels * batch.pixels), first(4 * tile) {}

  // Where the i-th element lies; -1 past the sample's end.
  __device__ __forceinline__ int64_t at(int i) const {
    int64_t element = first + i;
    if (element >= batch.channels * batch.pixels) return -1;
    if (!batch.channels_last) return base + element;
    return base + element % batch.pixels * batch.channels + element / batch.pixels;
  }

  __device__ __forceinline__ void load(const void* from, float (&values)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      int64_t position = at(i);
      values[i] = position < 0 ? 0.0f : device_float(static_cast<const T*>(from)[position]);
    }
  }

  __device__ __forceinline__ void store(void* to, const float (&values)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      int64_t position = at(i);
      if (position >= 0) static_cast<T*>(to)[position] = from_float<T>(values[i]);
    }
  }

  __device__ __forceinline__ void noise(int64_t seed, uint32_t stream, uint32_t step,
                                        float (&values)[kCount]) const {
    normal4(seed, uint32_t(first / 4), stream, step, values);
  }
};

// table[t + shift], NaN where t lies outside 0..num_steps - 1.
__device__ __forceinline__ float table_at(const float* table, int64_t t, int64_t num_steps,
                                          int shift = 0) {
  return t >= 0 && t < num_steps ? table[t + shift] : NAN;
}

// `work` is a struct whose run(sample, tile) does one tile.
template <typename T, int kChannels, typename Work>
__global__ void __launch_bounds__(kTileThreads)
    tile_kernel(Work work, Batch batch, unsigned blocks) {
  int64_t tile = int64_t(blockIdx.x % blocks) * kTileThreads + threadIdx.x;
  if (tile >= Tile<T, kChannels>::count(batch)) return;
  int64_t sample = blockIdx.x / blocks;
  work.run(sample, Tile<T, kChannels>(batch, sample, tile));
}

template <typename T, int kChannels, typename Work>
cudaError_t launch_tiles(const Work& work, const Batch& batch, void* stream) {
  int64_t tiles = Tile<T, kChannels>::count(batch);
  unsigned blocks = unsigned((tiles + kTileThreads - 1) / kTileThreads);
  return launch_kernel(tile_kernel<T, kChannels, Work>, unsigned(batch.samples * blocks),
                       kTileThreads, 0, stream, 1, work, batch, blocks);
}

// Runs `work` over the batch with the widest tiles that it and the tensors' alignment allow.
template <typename Work>
int run_tiles(const Work& work, const Batch& batch, Dtype dtype, bool aligned, void* stream) {
  int64_t size = batch.channels * batch.pixels;
  if (batch.samples == 0 || size == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  visit(dtype, [&](auto* type) {
    using T = typename DeviceType<std::remove_pointer_t<decltype(type)>>::type;
    constexpr int kSize = Pack<T>::kSize;
    bool whole = aligned && batch.pixels % kSize == 0;
    if (!batch.channels_last && aligned && size % kSize == 0) {
      error = launch_tiles<T, 1>(work, batch, stream);
    } else if (batch.channels_last && whole && batch.channels == 3) {
      error = launch_tiles<T, 3>(work, batch, stream);
    } else if (batch.channels_last && whole && batch.channels == 4) {
      error = launch_tiles<T, 4>(work, batch, stream);
    } else {
      error = launch_tiles<T, 0>(work, batch, stream);
    }
  });
  return error;
}

// Whether every pointer allows 16-byte accesses (null, for what is not given, does).
template <typename... Pointers>
bool all_aligned(Pointers... pointers) {
  return (... && (reinterpret_cast<uintptr_t>(pointers) % 16 == 0));
}

}  // namespace lddgan
