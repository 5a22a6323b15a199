// The vectors of vec.h, and how their bits are read and written.
#pragma once

#include <cstdint>
#include <cstring>

#include "lddgan/dtype.h"
#include "lddgan/isa.h"

#define LDDGAN_INLINE inline __attribute__((always_inline))

namespace lddgan::LDDGAN_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kWidth = 8, kRegisters = 16;
#elif defined(LDDGAN_NEON)
constexpr int kWidth = 4, kRegisters = 32;
#else
constexpr int kWidth = 4, kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4), may_alias));
typedef int32_t VecI __attribute__((vector_size(kWidth * 4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4), may_alias));
typedef uint16_t VecH __attribute__((vector_size(kWidth * 2), may_alias));

// Subtracting zero leaves every value alone, so no instruction is spent; adding it would turn -0.
LDDGAN_INLINE Vec broadcast(float value) { return value - Vec{}; }

template <typename V, typename T>
LDDGAN_INLINE V load_raw(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <typename V, typename T>
LDDGAN_INLINE void store_raw(T* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

LDDGAN_INLINE Vec load(const float* p) { return load_raw<Vec>(p); }
LDDGAN_INLINE void store(float* p, Vec v) { store_raw(p, v); }

// For sets without an instruction for it.
LDDGAN_INLINE float sum_by_halves(Vec v) {
  float part[kWidth];
  store_raw(part, v);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
}

}  // namespace lddgan::LDDGAN_ISA
