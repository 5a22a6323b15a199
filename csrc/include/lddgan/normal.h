// Philox noise in vectors, for csrc/cpu.
#pragma once

#include <utility>

#include "lddgan/parallel.h"
#include "lddgan/philox.h"
#include "lddgan/seeded_normal.h"
#include "lddgan/vec.h"

namespace lddgan::LDDGAN_ISA {

struct VectorMath {
  using F = Vec;
  using I = VecI;
  using U = VecU;

  static LDDGAN_INLINE F to_float(I x) { return __builtin_convertvector(x, F); }
  static LDDGAN_INLINE I bits(F x) { return (I)x; }
  static LDDGAN_INLINE F from_bits(I x) { return (F)x; }
  static LDDGAN_INLINE F select(I mask, F yes, F no) { return mask ? yes : no; }
  static LDDGAN_INLINE F sqrt(F x) {
#if defined(__AVX512F__)
    return (F)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (F)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < kWidth; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
  }
};

// One noise of one sample: everything of the counter and key but the element.
struct PhiloxStream {
  uint64_t key0[kPhiloxRounds], key1[kPhiloxRounds];  // 64-bit: one broadcasting operand each
  uint32_t stream, step;

  LDDGAN_INLINE PhiloxStream(int64_t seed, uint32_t stream, uint32_t step)
      : stream(stream), step(step) {
    key0[0] = uint32_t(seed);
    key1[0] = uint32_t(uint64_t(seed) >> 32);
    for (int round = 1; round < kPhiloxRounds; ++round) {
      key0[round] = uint32_t(key0[round - 1] + kPhiloxKeyStep0);
      key1[round] = uint32_t(key1[round - 1] + kPhiloxKeyStep1);
    }
  }
};

constexpr int kNormals = 4 * kWidth;  // made at once

// Of four vectors, 128-bit block by 128-bit block, the transposed 4x4 matrix.
template <typename Pattern, int... I>
LDDGAN_INLINE Vec shuffle(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Pattern::at(I)...);
#else
  return __builtin_shuffle(a, b, VecI{Pattern::at(I)...});
#endif
}

template <int kHalf>
struct Unpack {  // a2h b2h a2h+1 b2h+1
  static constexpr int at(int i) {
    return i - i % 4 + 2 * kHalf + i % 4 / 2 + (i % 2 ? kWidth : 0);
  }
};

template <int kHalf>
struct Join {  // a2h a2h+1 b2h b2h+1
  static constexpr int at(int i) {
    return i - i % 4 + 2 * kHalf + i % 2 + (i % 4 / 2 ? kWidth : 0);
  }
};

LDDGAN_INLINE void transpose_blocks(Vec (&v)[4]) {
  constexpr auto all = std::make_integer_sequence<int, kWidth>();
  Vec low01 = shuffle<Unpack<0>>(v[0], v[1], all), high01 = shuffle<Unpack<1>>(v[0], v[1], all);
  Vec low23 = shuffle<Unpack<0>>(v[2], v[3], all), high23 = shuffle<Unpack<1>>(v[2], v[3], all);
  v[0] = shuffle<Join<0>>(low01, low23, all);
  v[1] = shuffle<Join<1>>(low01, low23, all);
  v[2] = shuffle<Join<0>>(high01, high23, all);
  v[3] = shuffle<Join<1>>(high01, high23, all);
}

// The counter that a lane computes, so that transpose_blocks leaves elements in order.
constexpr uint32_t lane_counter(int lane) { return kWidth / 4 * (lane % 4) + lane / 4; }

#if defined(__AVX2__)
// Philox state is kept in 64-bit lanes whose upper halves are ignored: the multiplier reads lower
// halves only, so a product serves as the low word and, shifted, as the high one.
typedef uint64_t VecL __attribute__((vector_size(kWidth * 4), may_alias));

LDDGAN_INLINE VecL multiply(VecL a, uint32_t b) {
#if defined(__AVX512F__)
  return (VecL)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#else
  return (VecL)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#endif
}

LDDGAN_INLINE void philox_rounds(const PhiloxStream& s, VecL counter, VecL (&words)[4]) {
  VecL c0 = counter, c1 = VecL{} + s.stream, c2 = VecL{} + s.step, c3 = VecL{};
  for (int round = 0; round < kPhiloxRounds; ++round) {
    VecL first = multiply(c0, kPhiloxMultiplier0), second = multiply(c2, kPhiloxMultiplier1);
    c0 = (second >> 32) ^ c1 ^ (VecL{} + s.key0[round]);
    c2 = (first >> 32) ^ c3 ^ (VecL{} + s.key1[round]);
    c1 = second;
    c3 = first;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

LDDGAN_INLINE void philox(const PhiloxStream& s, uint32_t first, VecU (&words)[4]) {
  VecL even, odd, even_words[4], odd_words[4];
  for (int i = 0; i < kWidth / 2; ++i) {
    even[i] = lane_counter(2 * i);
    odd[i] = lane_counter(2 * i + 1);
  }
  philox_rounds(s, even + first, even_words);
  philox_rounds(s, odd + first, odd_words);
  for (int i = 0; i < 4; ++i) {
    words[i] = (VecU)((even_words[i] & 0xffffffffu) | (odd_words[i] << 32));
  }
}
#else
LDDGAN_INLINE void philox(const PhiloxStream& s, uint32_t first, VecU (&words)[4]) {
  for (int lane = 0; lane < kWidth; ++lane) {
    uint32_t w[4] = {first + lane_counter(lane), s.stream, s.step, 0};
    philox4x32(w, uint32_t(s.key0[0]), uint32_t(s.key1[0]));
    for (int i = 0; i < 4; ++i) words[i][lane] = w[i];
  }
}
#endif

// The kNormals elements from 4 * `first` on.
LDDGAN_INLINE void normals(const PhiloxStream& s, uint32_t first, Vec (&out)[4]) {
  VecU words[4];
  philox(s, first, words);
  box_muller<VectorMath>(words[0], words[1], out[0], out[1]);
  box_muller<VectorMath>(words[2], words[3], out[2], out[3]);
  transpose_blocks(out);
}

// Memory positions of a sample that are worked on together: they fit the first-level cache and are
// whole pixels, in multiples of kNormals.
int64_t noise_chunk(const Batch& batch);

// A thread's buffers for `slots` noises of one chunk.
class NoiseBuffer {
 public:
  NoiseBuffer(const Batch& batch, int slots);
  ~NoiseBuffer();
  NoiseBuffer(const NoiseBuffer&) = delete;

  // The noise of the memory positions [begin, end) of a sample, in memory order; `begin` is a
  // multiple of the chunk. Valid until the slot's next filling.
  const float* fill(int slot, const PhiloxStream& s, int64_t begin, int64_t end);

 private:
  void fill_pixel_major(const PhiloxStream& s, int64_t begin, int64_t end, float* noise);

  const Batch& batch_;
  int64_t slot_ = 0;        // room for one slot's noise
  int64_t run_ = 0;         // channels_last: room for one channel's elements of a chunk
  float* noise_ = nullptr;  // slot by slot, in memory order
  float* runs_ = nullptr;   // channels_last: channel by channel
};

// Calls body(buffer, sample, begin, end) for the chunks of all samples, over threads, with a buffer
// of `slots`.
template <typename F>
LDDGAN_INLINE void for_each_chunk(const Batch& batch, int slots, const F& body) {
  constexpr int64_t kGrain = 8192;  // elements a thread; below, waking a thread costs more
  int64_t size = batch.channels * batch.pixels;
  if (size == 0) return;
  int64_t chunk = noise_chunk(batch);
  if (chunk > size) chunk = size;
  int64_t chunks = (size + chunk - 1) / chunk;
  parallel_for(batch.samples * chunks, (kGrain + chunk - 1) / chunk,
               [&](int64_t first, int64_t last) {
                 NoiseBuffer buffer(batch, slots);
                 for (int64_t i = first; i < last; ++i) {
                   int64_t begin = i % chunks * chunk;
                   int64_t end = begin + chunk < size ? begin + chunk : size;
                   body(buffer, i / chunks, begin, end);
                 }
               });
}

}  // namespace lddgan::LDDGAN_ISA
