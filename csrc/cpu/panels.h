// Products of a matrix made on the way with packed weights: what convolutions come down to.
//
// A `Conv` has kCount products side by side, each of `rows` by `depth` with `depth` by `columns`:
//   static constexpr int kCount;  int64_t rows, depth, columns;
//   const float* weight;                                // [columns / kConvPanel, kCount, depth,
//   kConvPanel] in<kRows>(row, to, stride): a row of the left matrices, `stride` floats apart, its
//   lanes of
//     kConvLane values kRows lanes apart
//   out<kRows>(row, m, channel): takes kConvPanel columns of a row's products from `channel` on,
//     kRows * kConvPanel floats apart
#pragma once

#include <cstdlib>

#include "conv3x3.h"
#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

// The accumulators of one product: so many rows by some vectors, all in registers. The lesser
// number is for small images, where the greater leaves too many rows empty.
constexpr int kManyRows = kWidth == 16 ? 14 : kRegisters == 32 ? 8 : 6;
constexpr int kFewRows = kWidth == 16 ? 8 : 4;
// On NEON 16 accumulators: as many as keep four multipliers busy.
constexpr int vectors_of(int rows) { return kWidth == 4 && kRegisters == 32 ? 16 / rows : 2; }
// Rows of weights that stay in the first-level cache while all rows are multiplied with them.
constexpr int64_t kDepth = 128;
// Bytes of left matrices that a thread keeps in its second-level cache.
constexpr int64_t kBlockBytes = 1400 * 1024;
// Up to here all threads share the left matrices and each reads its own weights: with few rows
// reading the weights is most of the work.
constexpr int64_t kSharedBytes = 2048 * 1024;

constexpr int kLine = 16;  // floats of a cache line

class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data(static_cast<float*>(
            std::aligned_alloc(64, size_t(count * int64_t(sizeof(float)) + 63) / 64 * 64))) {
    if (!data) std::abort();
  }
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* const data;
};

// m[kRows][kColumns] += v[kRows][depth] u[depth][kColumns], kColumns being vectors_of(kRows), v in
// lanes; where `first`, m is 0 before. Fetches cache lines from `next` on: kLines with each row of
// u, or where that is 0, `lines` with every kConvLane rows.
template <int kRows, int kLines>
void multiply(const float* v, const float* u, int64_t depth, float* m, bool first,
              const float* next, int64_t lines) {
  constexpr int kVectors = vectors_of(kRows);
  Vec sums[kRows][kVectors] = {};
  for (int64_t c = 0; c < depth; c += kConvLane, v += kRows * kConvLane) {
    if constexpr (kLines == 0) {
      for (int64_t i = 0; i < lines; ++i, next += kLine) __builtin_prefetch(next);
    }
    for (int lane = 0; lane < kConvLane; lane += kFactors) {
      Factors<kFactors> values[kRows];
#pragma GCC unroll 14
      for (int r = 0; r < kRows; ++r) values[r].read(v + r * kConvLane + lane);
#pragma GCC unroll 4
      for (int k = 0; k < kFactors; ++k, u += kConvPanel) {
        for (int i = 0; i < kLines; ++i, next += kLine) __builtin_prefetch(next);
        Vec row[kVectors];
        for (int i = 0; i < kVectors; ++i) row[i] = load(u + i * kWidth);
#pragma GCC unroll 14
        for (int r = 0; r < kRows; ++r) {
          for (int i = 0; i < kVectors; ++i) sums[r][i] += values[r][k] * row[i];
        }
      }
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r, m += kConvPanel) {
    for (int i = 0; i < kVectors; ++i) {
      float* to = m + i * kWidth;
      store(to, first ? sums[r][i] : load(to) + sums[r][i]);
    }
  }
}

// The left matrices' panels [begin, end) of kRows rows, at v.
template <int kRows, typename Conv>
void make_panels(const Conv& conv, int64_t begin, int64_t end, float* v, int64_t stride) {
  const int64_t panel = kRows * conv.depth, first = begin * kRows;
  for (int64_t i = 0; i < (end - begin) * kRows; ++i) {
    float* to = v + i / kRows * panel + i % kRows * kConvLane;
    if (first + i < conv.rows) {
      conv.template in<kRows>(first + i, to, stride);
      continue;
    }
    // Multiplied too, and dropped.
    for (int q = 0; q < Conv::kCount; ++q) {
      for (int64_t c = 0; c < panel; c += kRows * kConvLane) {
        for (int lane = 0; lane < kConvLane; lane += kWidth) {
          store(to + q * stride + c + lane, Vec{});
        }
      }
    }
  }
}

// Those panels, at v, by one panel of columns, by way of m.
template <int kRows, typename Conv>
void multiply_panels(const Conv& conv, int64_t begin, int64_t end, const float* v, int64_t stride,
                     int64_t channel, float* m) {
  constexpr int kColumns = vectors_of(kRows) * kWidth;
  constexpr int64_t kProducts = Conv::kCount * kRows * kConvPanel;
  const int64_t panel = kRows * conv.depth, first = begin * kRows;
  const float* u = conv.weight + channel * Conv::kCount * conv.depth;
  // Weights come from memory, in one stream: while some are multiplied with, the next as many are
  // fetched, spread over all passes.
  constexpr int64_t kLinesOfRows = kConvLane * kConvPanel / kLine;
  const int64_t passes = (end - begin) * (kConvPanel / kColumns);
  const int64_t lines = (kLinesOfRows + passes - 1) / passes;
  const auto pass = lines == 2 * kConvLane ? multiply<kRows, 2>
                    : lines == kConvLane   ? multiply<kRows, 1>
                                           : multiply<kRows, 0>;
  for (int q = 0; q < Conv::kCount; ++q) {
    for (int64_t c = 0; c < conv.depth; c += kDepth) {
      const int64_t depth = conv.depth - c < kDepth ? conv.depth - c : kDepth;
      const float* next = u + depth * kConvPanel;
      int64_t left = kLinesOfRows;
      for (int64_t p = 0; p < end - begin; ++p) {
        const float* from = v + q * stride + p * panel + c * kRows;
        float* to = m + p * kProducts + q * kRows * kConvPanel;
        for (int column = 0; column < kConvPanel; column += kColumns) {
          const int64_t now = lines < left ? lines : left;
          pass(from, u + column, depth, to + column, c == 0, next, now);
          next += now * kLine * (depth / kConvLane);
          left -= now;
        }
      }
      u += depth * kConvPanel;
    }
  }
  for (int64_t i = 0; i < (end - begin) * kRows && first + i < conv.rows; ++i) {
    conv.template out<kRows>(first + i, m + i / kRows * kProducts + i % kRows * kConvPanel,
                             channel);
  }
}

// Each thread takes panels of rows, and reads all weights for a block of them.
template <int kRows, typename Conv>
void multiply_by_rows(const Conv& conv, int64_t panels) {
  parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    int64_t most = kBlockBytes / (Conv::kCount * kRows * conv.depth * int64_t(sizeof(float)));
    most = most < 1 ? 1 : most > end - begin ? end - begin : most;
    const int64_t stride = most * kRows * conv.depth;
    Scratch v(Conv::kCount * stride), m(most * Conv::kCount * kRows * kConvPanel);
    for (; begin < end; begin += most) {
      const int64_t last = end - begin < most ? end : begin + most;
      make_panels<kRows>(conv, begin, last, v.data, stride);
      for (int64_t channel = 0; channel < conv.columns; channel += kConvPanel) {
        multiply_panels<kRows>(conv, begin, last, v.data, stride, channel, m.data);
      }
    }
  });
}

// Each thread takes panels of columns, so that each weight is read once.
template <int kRows, typename Conv>
void multiply_by_columns(const Conv& conv, int64_t panels) {
  const int64_t panel = kRows * conv.depth, stride = panels * panel;
  Scratch v(Conv::kCount * stride);
  constexpr int64_t kGrain = 8192;  // floats worth a thread
  parallel_for(panels, 1 + kGrain / (Conv::kCount * panel), [&](int64_t begin, int64_t end) {
    make_panels<kRows>(conv, begin, end, v.data + begin * panel, stride);
  });
  // Panels of columns, and parts of the rows where those alone would leave threads idle.
  const int64_t columns = conv.columns / kConvPanel, threads = num_threads();
  int64_t parts = 1;
  while (parts < panels && columns * parts % threads != 0 && columns * parts < 4 * threads) ++parts;
  const int64_t most = (panels + parts - 1) / parts;
  parallel_for(columns * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch m(most * Conv::kCount * kRows * kConvPanel);
    for (; begin < end; ++begin) {
      const int64_t first = begin % parts * most;
      const int64_t last = panels - first < most ? panels : first + most;
      if (first >= last) continue;
      multiply_panels<kRows>(conv, first, last, v.data + first * panel, stride,
                             begin / parts * kConvPanel, m.data);
    }
  });
}

template <int kRows, typename Conv>
void multiply_rows(const Conv& conv) {
  const int64_t panels = (conv.rows + kRows - 1) / kRows;
  const int64_t bytes = Conv::kCount * panels * kRows * conv.depth * int64_t(sizeof(float));
  bytes <= kSharedBytes ? multiply_by_columns<kRows>(conv, panels)
                        : multiply_by_rows<kRows>(conv, panels);
}

inline int64_t padded(int64_t count, int64_t rows) { return (count + rows - 1) / rows * rows; }

// Everything. A row's products are the same, bit for bit, whichever way is taken.
template <typename Conv>
void multiply_all(const Conv& conv) {
  padded(conv.rows, kFewRows) * 9 < padded(conv.rows, kManyRows) * 8
      ? multiply_rows<kFewRows>(conv)
      : multiply_rows<kManyRows>(conv);
}

}  // namespace lddgan::LDDGAN_ISA
