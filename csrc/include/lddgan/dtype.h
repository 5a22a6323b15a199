// The storage types of the kernels, without a PyTorch or CUDA header.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace lddgan {

enum class Dtype : int32_t { kFloat32, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

// Scalar conversions, for CPU code without hardware support. `static` keeps one copy per
// translation unit: these are compiled for several instruction sets (see isa.h).
static inline float to_float(float x) { return x; }

static inline float to_float(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline float to_float(Half x) {
  uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31,
           mantissa = x.bits & 0x3ff;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    float magnitude = float(mantissa) * 0x1p-24f;  // zero and denormals, exactly
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline Half to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};   // NaN
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds to infinity
  if (magnitude < 0x38800000) {  // below 2^-14: adding 2^-1 * 2^0 aligns the mantissa and rounds
    float absolute;
    std::memcpy(&absolute, &magnitude, 4);
    float aligned = absolute + 0.5f;
    uint32_t aligned_bits;
    std::memcpy(&aligned_bits, &aligned, 4);
    return {uint16_t(sign | (aligned_bits - 0x3f000000))};
  }
  uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return {uint16_t(sign | ((rounded - 0x38000000) >> 13))};
}

static inline BFloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Calls f with a null pointer of the storage type of `dtype`: visit(dtype, [&](auto* t) {...}).
template <typename F>
static inline void visit(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(static_cast<float*>(nullptr));
    case Dtype::kBFloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case Dtype::kFloat16:
      return f(static_cast<Half*>(nullptr));
  }
}

}  // namespace lddgan
