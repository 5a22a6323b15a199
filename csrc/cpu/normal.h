// Philox noise in vectors, for csrc/cpu.
#pragma once

#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "lddgan/philox.h"
#include "lddgan/seeded_normal.h"
#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

// As many vectors as are worked on in step, each operation on all of them, to hide its latency: the
// processor looks ahead less far than one vector's chain of operations is long.
constexpr int kTogether = kRegisters == 32 ? 4 : 2;

template <typename V>
struct Together {
  using Lane = std::remove_reference_t<decltype(V{}[0])>;
  V v[kTogether];

  LDDGAN_INLINE Together() = default;
  LDDGAN_INLINE Together(Lane x) {
    for (V& each : v) each = x - V{};
  }
  template <typename W>  // the same bits
  LDDGAN_INLINE explicit Together(const Together<W>& other) {
    for (int k = 0; k < kTogether; ++k) v[k] = (V)other.v[k];
  }

  template <typename F, typename... Others>
  static LDDGAN_INLINE Together of(const F& f, const Others&... others) {
    Together out;
    for (int k = 0; k < kTogether; ++k) out.v[k] = f(others.v[k]...);
    return out;
  }

  friend LDDGAN_INLINE Together operator+(Together a, Together b) {
    return of([](V x, V y) { return x + y; }, a, b);
  }
  friend LDDGAN_INLINE Together operator-(Together a, Together b) {
    return of([](V x, V y) { return x - y; }, a, b);
  }
  friend LDDGAN_INLINE Together operator*(Together a, Together b) {
    return of([](V x, V y) { return x * y; }, a, b);
  }
  friend LDDGAN_INLINE Together operator&(Together a, Together b) {
    return of([](V x, V y) { return x & y; }, a, b);
  }
  friend LDDGAN_INLINE Together operator|(Together a, Together b) {
    return of([](V x, V y) { return x | y; }, a, b);
  }
  friend LDDGAN_INLINE Together operator^(Together a, Together b) {
    return of([](V x, V y) { return x ^ y; }, a, b);
  }
  friend LDDGAN_INLINE Together operator~(Together a) {
    return of([](V x) { return ~x; }, a);
  }
  friend LDDGAN_INLINE Together operator<<(Together a, int count) {
    return of([=](V x) { return x << count; }, a);
  }
  friend LDDGAN_INLINE Together operator>>(Together a, int count) {
    return of([=](V x) { return x >> count; }, a);
  }
  friend LDDGAN_INLINE Together<VecI> operator!=(Together a, Lane b) {
    return Together<VecI>::of([=](V x) { return (VecI)(x != b); }, a);
  }
};

struct VectorMath {
  using F = Together<Vec>;
  using I = Together<VecI>;
  using U = Together<VecU>;

  static LDDGAN_INLINE F to_float(I x) {
    return F::of([](VecI x) { return __builtin_convertvector(x, Vec); }, x);
  }
  static LDDGAN_INLINE I bits(F x) { return I(x); }
  static LDDGAN_INLINE F from_bits(I x) { return F(x); }
  static LDDGAN_INLINE F select(I mask, F yes, F no) {
    return F::of([](VecI mask, Vec yes, Vec no) { return mask ? yes : no; }, mask, yes, no);
  }
  static LDDGAN_INLINE F sqrt(F x) { return F::of(LDDGAN_ISA::sqrt, x); }

#if defined(__AVX512F__)
  static LDDGAN_INLINE F with_sign(F x, U sign) {  // x | sign & 2^31
    return F::of(
        [](Vec x, VecU sign) {
          return (Vec)_mm512_ternarylogic_epi32((__m512i)x, (__m512i)sign,
                                                _mm512_set1_epi32(INT32_MIN), 0xf8);
        },
        x, sign);
  }
  static LDDGAN_INLINE void turn(U quadrant, F& cosine, F& sine) {
    for (int k = 0; k < kTogether; ++k) {
      __mmask16 odd = _mm512_test_epi32_mask((__m512i)quadrant.v[k], _mm512_set1_epi32(1 << 30));
      __m512 c = (__m512)cosine.v[k], s = (__m512)sine.v[k];
      cosine.v[k] = (Vec)_mm512_mask_sub_ps(c, odd, _mm512_setzero_ps(), s);
      sine.v[k] = (Vec)_mm512_mask_mov_ps(s, odd, c);
    }
  }
  static LDDGAN_INLINE void split(U word, F& f, F& offset) {
    const __m512 scale = _mm512_set1_ps(-1.3862943611f);
    for (int k = 0; k < kTogether; ++k) {
      __m512i x = (__m512i)word.v[k];
      __mmask16 small = _mm512_testn_epi32_mask(x, _mm512_set1_epi32(INT32_MIN));
      __m512 u = _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), _mm512_set1_ps(0x1p-32f),
                                 _mm512_set1_ps(0x1p-33f));
      __m512 m = _mm512_getmant_ps(u, _MM_MANT_NORM_p5_1, _MM_MANT_SIGN_src);
      f.v[k] = (Vec)_mm512_mask_sub_ps(u, small, m, _mm512_set1_ps(1.0f));
      offset.v[k] = (Vec)_mm512_maskz_fmadd_ps(small, _mm512_getexp_ps(u), scale, scale);
    }
  }
#else
  static LDDGAN_INLINE F with_sign(F x, U sign) { return F(I(x) | I(sign & 0x80000000u)); }
  static LDDGAN_INLINE void turn(U quadrant, F& cosine, F& sine) {
    I odd = (quadrant & (1u << 30)) != 0;
    F c = cosine, s = sine;
    cosine = select(odd, F(0.0f) - s, c);
    sine = select(odd, c, s);
  }
  static LDDGAN_INLINE void split(U word, F& f, F& offset) {
    lddgan::split<VectorMath>(word, f, offset);
  }
#endif
};

// Philox state lies in 64-bit lanes, one a counter, whose upper halves are ignored: the multiplier
// reads lower halves only, so a product serves as the low word and, shifted, as the high one.
typedef uint64_t VecL __attribute__((vector_size(kWidth * 4), may_alias));

LDDGAN_INLINE VecL multiply(VecL a, uint32_t b) {
#if defined(__AVX512F__)
  return (VecL)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (VecL)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (VecL)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#elif defined(LDDGAN_NEON)
  return (VecL)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
#else
  return (a & 0xffffffffu) * b;
#endif
}

// The upper half as the lower one. A shuffle, where shifts have but one port and are many already.
LDDGAN_INLINE VecL high(VecL a) {
#if defined(__AVX512F__)
  return (VecL)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_DDBB);
#else
  return a >> 32;
#endif
}

LDDGAN_INLINE VecL exclusive_or(VecL a, VecL b, VecL c) {
#if defined(__AVX512F__)
  return (VecL)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// Lower halves of a and b, or upper ones, side by side: those of a below.
LDDGAN_INLINE VecU join_low(VecL a, VecL b) {
#if defined(__AVX512F__)
  return (VecU)_mm512_mask_shuffle_epi32((__m512i)a, 0xaaaa, (__m512i)b, _MM_PERM_CCAA);
#elif defined(LDDGAN_NEON)
  return (VecU)vtrn1q_u32((uint32x4_t)a, (uint32x4_t)b);
#else
  return (VecU)((a & 0xffffffffu) | (b << 32));
#endif
}
LDDGAN_INLINE VecU join_high(VecL a, VecL b) {
#if defined(__AVX512F__)
  return (VecU)_mm512_mask_shuffle_epi32((__m512i)b, 0x5555, (__m512i)a, _MM_PERM_DDBB);
#elif defined(LDDGAN_NEON)
  return (VecU)vtrn2q_u32((uint32x4_t)a, (uint32x4_t)b);
#else
  return (VecU)((a >> 32) | (b & ~uint64_t(0xffffffffu)));
#endif
}

// One noise of one sample: everything of the counter and key but the element. What the first two
// rounds make of constants alone is here; 64-bit, so that each is one broadcasting operand.
struct PhiloxStream {
  uint64_t key0[kPhiloxRounds], key1[kPhiloxRounds];
  uint64_t last_keys;                  // the last round's, side by side
  uint64_t second0, second2, second3;  // what the second round combines with words 0, 2; word 3

  LDDGAN_INLINE PhiloxStream(int64_t seed, uint32_t stream, uint32_t step) {
    key0[0] = uint32_t(seed);
    key1[0] = uint32_t(uint64_t(seed) >> 32);
    for (int round = 1; round < kPhiloxRounds; ++round) {
      key0[round] = uint32_t(key0[round - 1] + kPhiloxKeyStep0);
      key1[round] = uint32_t(key1[round - 1] + kPhiloxKeyStep1);
    }
    uint64_t product = uint64_t(kPhiloxMultiplier1) * step;
    uint32_t word0 = uint32_t(product >> 32) ^ stream ^ uint32_t(key0[0]);
    second0 = uint32_t(product) ^ key0[1];
    product = uint64_t(kPhiloxMultiplier0) * word0;
    second2 = (product >> 32) ^ key1[1];
    second3 = uint32_t(product);
    constexpr int kLast = kPhiloxRounds - 1;
    last_keys = key1[kLast] << 32 | key0[kLast];
  }
};

// Radius and angle words of kTogether times kWidth / 2 counters, given as the first round's
// products: of each counter words 0 and 2, and 1 and 3, side by side.
LDDGAN_INLINE void philox(const PhiloxStream& s, const VecL (&product)[kTogether],
                          Together<VecU>& radius, Together<VecU>& angle) {
  VecL c0[kTogether], c1[kTogether], c2[kTogether], c3[kTogether];
  for (int k = 0; k < kTogether; ++k) {
    c1[k] = multiply((product[k] >> 32) ^ (VecL{} + s.key1[0]), kPhiloxMultiplier1);
    c2[k] = product[k] ^ (VecL{} + s.second2);
  }
  for (int k = 0; k < kTogether; ++k) {
    c0[k] = (c1[k] >> 32) ^ (VecL{} + s.second0);
    c3[k] = VecL{} + s.second3;
  }
  for (int round = 2; round < kPhiloxRounds - 1; ++round) {
    for (int k = 0; k < kTogether; ++k) {
      VecL first = multiply(c0[k], kPhiloxMultiplier0);
      VecL second = multiply(c2[k], kPhiloxMultiplier1);
      c0[k] = exclusive_or(high(second), c1[k], VecL{} + s.key0[round]);
      c2[k] = exclusive_or(first >> 32, c3[k], VecL{} + s.key1[round]);
      c1[k] = second;
      c3[k] = first;
    }
  }
  for (int k = 0; k < kTogether; ++k) {
    VecL first = multiply(c0[k], kPhiloxMultiplier0);
    VecL second = multiply(c2[k], kPhiloxMultiplier1);
    radius.v[k] = (VecU)exclusive_or((VecL)join_high(second, first), (VecL)join_low(c1[k], c3[k]),
                                     VecL{} + s.last_keys);
    angle.v[k] = join_low(second, first);
  }
}

constexpr int kNormals = 2 * kWidth * kTogether;  // made at once

// The counter, of kWidth / 2, in a 64-bit lane: those of even lanes, then those of odd ones.
constexpr uint64_t lane_counter(int lane) { return kWidth / 4 * (lane % 2) + lane / 2; }

// The kNormals elements from 4 * `first` on.
LDDGAN_INLINE void normals(const PhiloxStream& s, uint32_t first, Vec (&out)[2 * kTogether]) {
  VecL product[kTogether];  // with counters in a row: one product and constants
  for (int k = 0; k < kTogether; ++k) {
    for (int i = 0; i < kWidth / 2; ++i) {
      product[k][i] = kPhiloxMultiplier0 * (lane_counter(i) + k * kWidth / 2);
    }
    product[k] += kPhiloxMultiplier0 * uint64_t(first);
  }
  Together<VecU> radius, angle;
  philox(s, product, radius, angle);
  Together<Vec> cosine, sine;
  box_muller<VectorMath>(radius, angle, cosine, sine);
  for (int k = 0; k < kTogether; ++k) {
    // In blocks of four lanes: elements 0, 2 of one counter, 0, 2 of the next; and 1, 3, 1, 3.
    out[2 * k] = shuffle<[](int i) { return i / 4 * 4 + i % 4 / 2 + i % 2 * kWidth; }>(cosine.v[k],
                                                                                       sine.v[k]);
    out[2 * k + 1] = shuffle<[](int i) { return i / 4 * 4 + 2 + i % 4 / 2 + i % 2 * kWidth; }>(
        cosine.v[k], sine.v[k]);
  }
}

// Memory positions of a sample that are worked on together: whole pixels, in multiples of kNormals.
int64_t noise_chunk(const Batch& batch);

// A thread's means of making noise in memory order.
class NoiseSource {
 public:
  NoiseSource(const Batch& batch, int streams);
  ~NoiseSource();
  NoiseSource(const NoiseSource&) = delete;

  // Calls f(i, noise, count) for the memory positions begin + i of a sample: noise[k] is a vector
  // of stream k, count Full or how many of its elements count. `begin` is a multiple of the chunk
  // and, where channels_last, [begin, end) no longer than one.
  template <int kStreams, typename F>
  LDDGAN_INLINE void each(const PhiloxStream (&streams)[kStreams], int64_t begin, int64_t end,
                          const F& f) {
    int64_t count = end - begin, i = 0;
    auto stored = [&](const float* noise, int64_t stride) {
      for_vectors(count - i, [&](int64_t j, auto rest) {
        Vec each[kStreams];
        for (int k = 0; k < kStreams; ++k) each[k] = load(noise + k * stride + j);
        f(i + j, each, rest);
      });
    };
    if (batch_.channels_last) {
      for (int k = 0; k < kStreams; ++k) fill(k, streams[k], begin, end);
      return stored(noise_, slot_);
    }
    for (; i + kNormals <= count; i += kNormals) {
      Vec made[kStreams][2 * kTogether];
      for (int k = 0; k < kStreams; ++k) normals(streams[k], uint32_t((begin + i) / 4), made[k]);
      for (int j = 0; j < 2 * kTogether; ++j) {
        Vec noise[kStreams];
        for (int k = 0; k < kStreams; ++k) noise[k] = made[k][j];
        f(i + j * kWidth, noise, Full{});
      }
    }
    if (i == count) return;
    float tail[kStreams][kNormals];
    for (int k = 0; k < kStreams; ++k) {
      fill_run(streams[k], uint32_t((begin + i) / 4), count - i, tail[k]);
    }
    stored(tail[0], kNormals);
  }

 private:
  // Stream `k`'s noise of [begin, end) into its slot.
  void fill(int k, const PhiloxStream& s, int64_t begin, int64_t end);
  // The elements from 4 * `first` on, at least `count` and at most kNormals - 1 more.
  static void fill_run(const PhiloxStream& s, uint32_t first, int64_t count, float* out);

  const Batch& batch_;
  // Where channels_last; otherwise noise is made in memory order anyway.
  int64_t slot_ = 0;        // room for one stream's noise
  int64_t run_ = 0;         // room for one channel's elements of a chunk
  float* noise_ = nullptr;  // stream by stream, in memory order
  float* runs_ = nullptr;   // channel by channel
};

// Calls body(source, sample, begin, end) for the chunks of all samples, over threads, with a source
// for `streams` at once; for a sample's chunks together where a source can.
template <typename F>
LDDGAN_INLINE void for_each_chunk(const Batch& batch, int streams, const F& body) {
  constexpr int64_t kGrain = 8192;  // elements a thread; below, waking a thread costs more
  int64_t size = batch.channels * batch.pixels;
  if (size == 0) return;
  int64_t chunk = noise_chunk(batch);
  if (chunk > size) chunk = size;
  int64_t chunks = (size + chunk - 1) / chunk;
  parallel_for(batch.samples * chunks, (kGrain + chunk - 1) / chunk,
               [&](int64_t first, int64_t last) {
                 NoiseSource source(batch, streams);
                 for (int64_t i = first, n, stop; i < last; i = stop) {
                   n = i / chunks;
                   stop = batch.channels_last ? i + 1 : (n + 1) * chunks;
                   if (stop > last) stop = last;
                   int64_t end = (stop - n * chunks) * chunk;
                   body(source, n, i % chunks * chunk, end < size ? end : size);
                 }
               });
}

}  // namespace lddgan::LDDGAN_ISA
