// What a thread of the norm kernels moves at once: packs of neighbouring elements.
#pragma once

#include "cuda.cuh"

namespace lddgan {

// VEC elements as they lie in memory.
template <typename T, int VEC>
struct alignas(VEC * sizeof(T)) NormPack {
  T data[VEC];
  __device__ __forceinline__ float value(int e) const { return device_float(data[e]); }
  static __device__ __forceinline__ NormPack of(const float (&values)[VEC]) {
    NormPack pack;
#pragma unroll
    for (int e = 0; e < VEC; ++e) pack.data[e] = from_float<T>(values[e]);
    return pack;
  }
};

// Of 16-bit elements as words: taken apart as soon as loaded, packs would be waited for one by one.
template <typename T>
struct alignas(16) NormPack<T, 8> {
  uint32_t words[4];
  __device__ __forceinline__ float value(int e) const {
    return e % 2 == 0 ? low_float<T>(words[e / 2]) : high_float<T>(words[e / 2]);
  }
  static __device__ __forceinline__ NormPack of(const float (&values)[8]) {
    NormPack pack;
#pragma unroll
    for (int k = 0; k < 4; ++k) pack.words[k] = word_of<T>(values[2 * k], values[2 * k + 1]);
    return pack;
  }
};

// Whether packs are copied to shared memory past the registers.
template <typename T, int VEC>
constexpr bool kCopied16 = kCopiesPastRegisters && VEC * sizeof(T) == 16;

// A column's packs: those that the thread walks, and any other.
template <typename T, int VEC>
struct NormPacks {
  using Pack = NormPack<std::remove_const_t<T>, VEC>;
  T* at;  // the thread's first
  int unit,
      step;  // bytes to the next, and to the thread's next; 32 bits: an instruction an address
  template <typename P>
  static __device__ __forceinline__ P* moved(P* p, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
    return reinterpret_cast<P*>(reinterpret_cast<Byte*>(p) + bytes);
  }
  __device__ __forceinline__ const Pack* where(int j) const {
    return reinterpret_cast<const Pack*>(moved(at, int64_t(j) * step));
  }
  __device__ __forceinline__ Pack read(int j) const { return *where(j); }
  __device__ __forceinline__ Pack read_away(int packs) const {  // from the thread's first
    return *reinterpret_cast<const Pack*>(moved(at, int64_t(packs) * unit));
  }
  __device__ __forceinline__ void write(int j, const Pack& pack) const {
    *reinterpret_cast<Pack*>(moved(at, int64_t(j) * step)) = pack;
  }
};

}  // namespace lddgan
