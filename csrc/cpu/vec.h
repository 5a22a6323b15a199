// A float vector of the widest register that this translation unit is compiled for.
//
// Each file in csrc/cpu is compiled once per instruction set (see isa.h); everything here lives in
// that instruction set's namespace so that the linker never mixes them. GCC/Clang vector extensions
// carry the arithmetic, so the same source runs on AVX-512, AVX2, NEON and other processors. What
// they lack is in one header a set, the same in each:
//   load, store            of kWidth BFloat16 or Half, rounded to nearest even
//   store_stream           past the caches, for outputs larger than they are: p must be aligned to
//                          a whole vector, and stream_fence follow before other threads read; a
//                          plain store where there is no such instruction
//   max, min, sqrt         one instruction each; max and min are b where a is NaN and b is none
//   sum                    of all elements, added as a tree
#pragma once

#include <utility>

#include "vec_types.h"
#if defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#elif defined(LDDGAN_NEON)
#include "vec_neon.h"
#else
#include "vec_plain.h"
#endif

namespace lddgan::LDDGAN_ISA {

// The tail of a row: `count` < kWidth elements, the rest read as zero.
template <typename T>
LDDGAN_INLINE Vec load_tail(const T* p, int count) {
  T buffer[kWidth] = {};
  std::memcpy(buffer, p, count * sizeof(T));
  return load(buffer);
}

template <typename T>
LDDGAN_INLINE void store_tail(T* p, Vec v, int count) {
  T buffer[kWidth];
  store(buffer, v);
  std::memcpy(p, buffer, count * sizeof(T));
}

// A whole vector where count is kWidth, else the tail of a row.
template <typename T>
LDDGAN_INLINE Vec load_up_to(const T* p, int count) {
  return count == kWidth ? load(p) : load_tail(p, count);
}

template <typename T>
LDDGAN_INLINE void store_up_to(T* p, Vec v, int count) {
  count == kWidth ? store(p, v) : store_tail(p, v, count);
}

// One element, rounded to nearest even.
LDDGAN_INLINE void put(float* p, float value) { *p = value; }
LDDGAN_INLINE void put(BFloat16* p, float value) { *p = to_bfloat16(value); }
LDDGAN_INLINE void put(Half* p, float value) { *p = to_half(value); }

// Vectors that may reach past what is wanted, up to `limit`: reading lanes of no use, and writing
// lanes that the caller overwrites afterwards.
template <typename T>
LDDGAN_INLINE Vec load_until(const T* p, const T* limit) {
  return limit - p < kWidth ? load_tail(p, int(limit - p)) : load(p);
}

template <typename T>
LDDGAN_INLINE void store_until(T* p, Vec v, const T* limit) {
  if (limit - p < kWidth) {
    store_tail(p, v, int(limit - p));
  } else {
    store(p, v);
  }
}

// Whether to stream: inputs and outputs together past what the last-level cache keeps.
inline bool worth_streaming(int64_t bytes) { return bytes > int64_t(80) << 20; }

template <bool stream, typename T>
LDDGAN_INLINE void store_either(T* p, Vec v) {
  if constexpr (stream) {
    store_stream(p, v);
  } else {
    store(p, v);
  }
}

// `mask` comes from a comparison: all bits of a lane or none. One blend instruction.
LDDGAN_INLINE Vec select(VecI mask, Vec yes, Vec no) { return mask ? yes : no; }
LDDGAN_INLINE VecI select(VecI mask, VecI yes, VecI no) { return mask ? yes : no; }

// `count` floats in a row, each to be multiplied with vectors: [i] is the i-th in all lanes. On
// NEON a multiplication takes such a factor out of a register, elsewhere out of memory.
#if defined(LDDGAN_NEON)
constexpr int kFactors = kWidth;  // that are read at once

template <int count>
class Factors {
 public:
  LDDGAN_INLINE void read(const float* p) {
    for (int i = 0; i < count / kFactors; ++i) {
      v_[i] = load(p + i * kFactors);
      asm("" : "+w"(v_[i]));  // whole, in a register: GCC would load its elements one by one
    }
  }
  LDDGAN_INLINE Vec operator[](int i) const { return broadcast(v_[i / kFactors][i % kFactors]); }

 private:
  static_assert(count % kFactors == 0);
  Vec v_[count / kFactors];
};
#else
constexpr int kFactors = 1;

template <int count>
class Factors {
 public:
  LDDGAN_INLINE void read(const float* p) { p_ = p; }
  LDDGAN_INLINE Vec operator[](int i) const { return broadcast(p_[i]); }

 private:
  const float* p_;
};
#endif

// v with the elements from `count` on set to zero.
LDDGAN_INLINE Vec keep_first(Vec v, int count) {
  VecI index;
  for (int i = 0; i < kWidth; ++i) index[i] = i;
  return select(index < count, v, Vec{});
}

// Lane i of the result is lane index(i) of a and b laid side by side.
template <auto index, int... lane>
LDDGAN_INLINE Vec shuffle_lanes(Vec a, Vec b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, index(lane)...);
}
template <auto index>
LDDGAN_INLINE Vec shuffle(Vec a, Vec b) {
  return shuffle_lanes<index>(a, b, std::make_integer_sequence<int, kWidth>());
}

// a and b side by side are rows of `block` lanes: the rows of even number, those of odd number.
// With block 1 this de-interleaves 2 * kWidth elements.
template <int block = 1>
LDDGAN_INLINE Vec even(Vec a, Vec b) {
  return shuffle<[](int i) { return i / block * 2 * block + i % block; }>(a, b);
}
template <int block = 1>
LDDGAN_INLINE Vec odd(Vec a, Vec b) {
  return shuffle<[](int i) { return (i / block * 2 + 1) * block + i % block; }>(a, b);
}

// The inverse: rows of a and b in turn, the first and the second kWidth lanes of them.
template <int block = 1>
LDDGAN_INLINE Vec interleave_low(Vec a, Vec b) {
  if constexpr (block == kWidth) return a;
  return shuffle<[](int i) { return i / block % 2 * kWidth + i / block / 2 * block + i % block; }>(
      a, b);
}
template <int block = 1>
LDDGAN_INLINE Vec interleave_high(Vec a, Vec b) {
  if constexpr (block == kWidth) return b;
  return shuffle<[](int i) {
    return i / block % 2 * kWidth + i / block / 2 * block + i % block + kWidth / 2;
  }>(a, b);
}

// The sums of neighbouring lanes of a and b laid side by side.
LDDGAN_INLINE Vec pair_sums(Vec a, Vec b) {
#if defined(LDDGAN_NEON)
  return (Vec)vpaddq_f32((float32x4_t)a, (float32x4_t)b);
#else
  return even(a, b) + odd(a, b);
#endif
}

// Lane i of the result is the sum of all elements of rows[i]; clobbers the rows.
LDDGAN_INLINE Vec sums(Vec (&rows)[kWidth]) {
  for (int count = kWidth; count > 1; count /= 2) {
    for (int i = 0; i < count / 2; ++i) rows[i] = pair_sums(rows[2 * i], rows[2 * i + 1]);
  }
  return rows[0];
}

// Lanes moved up by `count`, the last of `before` entering; or down, the first of `after` entering.
template <int count>
LDDGAN_INLINE Vec lanes_up(Vec before, Vec v) {
  return shuffle<[](int i) { return i + kWidth - count; }>(before, v);
}
template <int count>
LDDGAN_INLINE Vec lanes_down(Vec v, Vec after) {
  return shuffle<[](int i) { return i + count; }>(v, after);
}

// e^x with relative error below 2e-7 on [-87, 88]; clamped outside, so never NaN, inf or denormal.
LDDGAN_INLINE Vec exp(Vec x) {
  x = max(min(x, broadcast(88.0f)), broadcast(-87.0f));
  // x = n ln 2 + r with |r| <= ln(2)/2, by the round-to-nearest trick of adding 1.5 * 2^23.
  const Vec magic = broadcast(12582912.0f);
  Vec shifted = x * 1.44269504f + magic;
  Vec n = shifted - magic;
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Taylor-like minimax polynomial of degree 6 for e^r.
  Vec p = r * 1.3981999e-3f + 8.3334519e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  VecI exponent = (VecI)shifted << 23;
  return (Vec)((VecI)p + exponent);
}

LDDGAN_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
LDDGAN_INLINE Vec silu(Vec x) { return x / (1.0f + exp(-x)); }

// A row through one generic body: f(i, Block<kBlock>{}) for several vectors at once (so that their
// chains of dependent instructions overlap), f(i, Full{}) for one, f(i, count) for the tail.
template <int count>
struct Block {};
using Full = Block<1>;

template <typename Lanes>
constexpr int kVectorsOf = 1;
template <int count>
constexpr int kVectorsOf<Block<count>> = count;

template <int kBlock = 1, typename F>
LDDGAN_INLINE void for_vectors(int64_t count, const F& f) {
  int64_t i = 0;
  if constexpr (kBlock > 1) {
    for (; i + kBlock * kWidth <= count; i += kBlock * kWidth) f(i, Block<kBlock>{});
  }
  for (; i + kWidth <= count; i += kWidth) f(i, Full{});
  if (i < count) f(i, int(count - i));
}

template <typename T, int count>
LDDGAN_INLINE Vec load(const T* p, Block<count>) {
  return load(p);
}
template <typename T>
LDDGAN_INLINE Vec load(const T* p, int count) {
  return load_tail(p, count);
}
template <typename T, int count>
LDDGAN_INLINE void store(T* p, Vec v, Block<count>) {
  store(p, v);
}
template <typename T>
LDDGAN_INLINE void store(T* p, Vec v, int count) {
  store_tail(p, v, count);
}
template <int count>
LDDGAN_INLINE Vec keep_first(Vec v, Block<count>) {
  return v;
}

}  // namespace lddgan::LDDGAN_ISA
