// By two with four separable taps, channels_last: the CPU kernels of upfirdn2d for that, and of
// norm_resample. Vectors over channels; vertical sums of columns slide along W in registers.
#pragma once

#include "upfirdn2d_planes.h"

namespace lddgan::LDDGAN_ISA {

namespace {

// Output columns whose channels are treated block by block before the next: all channels of a pixel
// reach memory close in time.
constexpr int64_t kColumns = 8;

// Adjacent channels of the rows of an image: pixels lie `in_step` and `out_step` elements apart.
struct RowWalk {
  int64_t channels, w, out_w, in_step, out_step, pad_x;
  Weights weights;
};

// kPartial: the last channels, fewer than lanes. kStream: past the caches.
enum class Access { kWhole, kPartial, kStream };

template <Access access, typename T>
LDDGAN_INLINE Vec get(const T* p, int lanes) {
  return access == Access::kPartial ? load_tail(p, lanes) : load(p);
}
template <Access access, typename T>
LDDGAN_INLINE void put(T* p, Vec v, int lanes) {
  if constexpr (access == Access::kPartial) {
    store_tail(p, v, lanes);
  } else {
    store_either<access == Access::kStream>(p, v);
  }
}

// Channels [c0, c0 + count * kWidth) of columns [begin, end) of one output row.
template <int count, Access access, typename In, typename Out>
LDDGAN_INLINE void down_channels(RowWalk g, const In* const* rows, Out* out, int64_t c0,
                                 int64_t begin, int64_t end) {
  const int lanes = int(g.channels - c0);
  Vec v[kTaps][count];
  auto column = [&](int64_t x, Vec* sum) __attribute__((always_inline)) {
    const bool inside = x >= 0 && x < g.w;
    for (int b = 0; b < count; ++b) {
      const int64_t at = x * g.in_step + c0 + b * kWidth;
      auto load_at = [&](const In* row) { return get<access>(row + at, lanes); };
      sum[b] = inside ? down_column(rows, g.weights, load_at) : Vec{};
    }
  };
  column(2 * begin - g.pad_x, v[0]);
  column(2 * begin - g.pad_x + 1, v[1]);
  for (int64_t o = begin; o < end; ++o) {
    column(2 * o - g.pad_x + 2, v[2]);
    column(2 * o - g.pad_x + 3, v[3]);
    for (int b = 0; b < count; ++b) {
      put<access>(out + o * g.out_step + c0 + b * kWidth,
                  weigh_down(g.weights, v[0][b], v[1][b], v[2][b], v[3][b]), lanes);
      v[0][b] = v[2][b];
      v[1][b] = v[3][b];
    }
  }
}

// The same of one or two output rows, `begin` even; odd_out is null where there is one.
template <int count, Access access, typename In, typename Out>
LDDGAN_INLINE void up_channels(RowWalk g, const In* const* rows, Out* even_out, Out* odd_out,
                               int64_t c0, int64_t begin, int64_t end) {
  const int lanes = int(g.channels - c0);
  EvenOdd v[3][count];
  auto column = [&](int64_t x, EvenOdd* sums) __attribute__((always_inline)) {
    const bool inside = x >= 0 && x < g.w;
    for (int b = 0; b < count; ++b) {
      const int64_t at = x * g.in_step + c0 + b * kWidth;
      auto load_at = [&](const In* row) { return get<access>(row + at, lanes); };
      sums[b] = inside ? up_column(rows, g.weights, load_at) : EvenOdd{Vec{}, Vec{}};
    }
  };
  const int64_t first = -g.pad_x / 2;
  column(first + begin / 2, v[0]);
  column(first + begin / 2 + 1, v[1]);
  for (int64_t o = begin; o < end; o += 2) {
    column(first + o / 2 + 2, v[2]);
    auto row = [&](Out* out, Vec EvenOdd::* sum) __attribute__((always_inline)) {
      Out* at = out + o * g.out_step + c0;
      for (int b = 0; b < count; ++b) {
        put<access>(at + b * kWidth, weigh_even(g.weights, v[0][b].*sum, v[1][b].*sum), lanes);
      }
      if (o + 1 == g.out_w) return;
      at += g.out_step;
      for (int b = 0; b < count; ++b) {
        put<access>(at + b * kWidth, weigh_odd(g.weights, v[1][b].*sum, v[2][b].*sum), lanes);
      }
    };
    row(even_out, &EvenOdd::even);
    if (odd_out) row(odd_out, &EvenOdd::odd);
    for (int b = 0; b < count; ++b) {
      v[0][b] = v[1][b];
      v[1][b] = v[2][b];
    }
  }
}

// One output row (down, of four rows) or two (up, of three; odd_out null where there is one).
template <bool up, typename In, typename Out>
void resample_rows(const RowWalk& g, const In* const* rows, Out* out, Out* odd_out, bool stream) {
  constexpr int kBlock = kRegisters == 32 ? (up ? 2 : 4) : 1;  // vectors in flight, by registers
  int64_t from = 0, to = 0;
  auto some = [&](auto count, auto access, int64_t c0) {
    if constexpr (up) {
      up_channels<count.value, access.value>(g, rows, out, odd_out, c0, from, to);
    } else {
      down_channels<count.value, access.value>(g, rows, out, c0, from, to);
    }
  };
  constexpr std::integral_constant<int, kBlock> block;
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<Access, Access::kWhole> whole;
  constexpr std::integral_constant<Access, Access::kPartial> partial;
  constexpr std::integral_constant<Access, Access::kStream> streamed;
  for (; from < g.out_w; from = to) {
    to = g.out_w - from < kColumns ? g.out_w : from + kColumns;
    int64_t c0 = 0;
    for (; c0 + kBlock * kWidth <= g.channels; c0 += kBlock * kWidth) {
      stream ? some(block, streamed, c0) : some(block, whole, c0);
    }
    for (; c0 + kWidth <= g.channels; c0 += kWidth) some(one, whole, c0);
    if (c0 == g.channels) continue;
    if (c0 == 0) {
      some(one, partial, c0);
    } else {
      some(one, whole, g.channels - kWidth);  // overlaps the one before
    }
  }
}

}  // namespace

}  // namespace lddgan::LDDGAN_ISA
