// The nearest code of each vector, exactly as a search in double precision finds it.
//
// Scan: for a tile of pixels, one a lane, s_k = |e_k|^2 - 2 z.e_k in float32, with z and the codes
// shifted by the codebook's mean so that few digits cancel. Per pixel the least and second least of
// the minima over blocks of codes are kept. Search: the winning block again, in double, on the
// values as given. A pixel whose second block comes within the scan's rounding error of the first
// is searched through the whole codebook.
#include "lddgan/nearest_code.h"

#include "lddgan/parallel.h"
#include "lddgan/vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr int kGroups = kWidth == 16 ? 4 : 2;  // of kWidth pixels; bounded by the registers
constexpr int kTile = kGroups * kWidth;
static_assert(kPixelTile % kTile == 0);

typedef double VecD __attribute__((vector_size(kWidth * 4), may_alias));
typedef float VecF __attribute__((vector_size(kWidth * 2), may_alias));  // as many as VecD holds
constexpr int kDoubles = kWidth / 2;

struct Codes {
  const float* centre;      // [depth]
  const float* scanned;     // [padded][depth + 1]: -2 (e - centre), |e - centre|^2
  const float* transposed;  // [depth][padded]
  int64_t padded;
  int64_t depth;
  float radius;  // the largest |e - centre|
};

Codes prepare(const NearestCodeArgs& a) {
  int64_t depth = a.depth, padded = padded_codes(a.codes);
  float* centre = a.workspace;
  float* scanned = centre + depth;
  float* transposed = scanned + padded * (depth + 1);
  for (int64_t d = 0; d < depth; ++d) {
    double total = 0;
    for (int64_t k = 0; k < a.codes; ++k) total += a.codebook[k * depth + d];
    centre[d] = float(total / double(a.codes));
  }
  float largest = 0;
  for (int64_t k = 0; k < padded; ++k) {
    float* row = scanned + k * (depth + 1);
    bool real = k < a.codes;  // the padding lies at infinity
    float square = real ? 0 : __builtin_inff();
    for (int64_t d = 0; d < depth; ++d) {
      float value = real ? a.codebook[k * depth + d] : __builtin_inff();
      float shifted = real ? value - centre[d] : 0;
      transposed[d * padded + k] = value;
      row[d] = -2 * shifted;
      square += shifted * shifted;
    }
    row[depth] = square;
    if (real && square > largest) largest = square;
  }
  return {centre, scanned, transposed, padded, depth, __builtin_sqrtf(largest)};
}

struct Scan {
  float best[kTile];    // the least s_k
  float second[kTile];  // the least s_k outside the block of the best
  int32_t block[kTile];
};

// D is the depth, or 0 where it is known at run time only. z: [depth][kTile], shifted.
template <int D>
void scan(const Codes& codes, const float* z, Scan& result) {
  const int64_t depth = D ? D : codes.depth;
  const Vec infinity = broadcast(__builtin_inff());
  Vec held[D ? D : 1][kGroups];
  if constexpr (D > 0) {
    for (int d = 0; d < D; ++d) {
      for (int g = 0; g < kGroups; ++g) held[d][g] = load(z + d * kTile + g * kWidth);
    }
  }
  Vec best[kGroups], second[kGroups];
  VecI block[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    best[g] = second[g] = infinity;
    block[g] = VecI{};
  }
  const float* row = codes.scanned;
  for (int64_t first = 0; first < codes.padded; first += kCodeBlock) {
    Vec low[kGroups];
    for (int g = 0; g < kGroups; ++g) low[g] = infinity;
    for (int64_t k = 0; k < kCodeBlock; ++k, row += depth + 1) {
      Vec score[kGroups];
      for (int g = 0; g < kGroups; ++g) score[g] = broadcast(row[depth]);
      if constexpr (D > 0) {
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d) {
          Vec e = broadcast(row[d]);
          for (int g = 0; g < kGroups; ++g) score[g] += e * held[d][g];
        }
      } else {
        for (int64_t d = 0; d < depth; ++d) {
          Vec e = broadcast(row[d]);
          for (int g = 0; g < kGroups; ++g) score[g] += e * load(z + d * kTile + g * kWidth);
        }
      }
      for (int g = 0; g < kGroups; ++g) low[g] = min(score[g], low[g]);
    }
    VecI here = VecI{} + int32_t(first / kCodeBlock);
    for (int g = 0; g < kGroups; ++g) {
      block[g] = select(low[g] < best[g], here, block[g]);
      second[g] = min(max(low[g], best[g]), second[g]);
      best[g] = min(low[g], best[g]);
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    store(result.best + g * kWidth, best[g]);
    store(result.second + g * kWidth, second[g]);
    store_raw(result.block + g * kWidth, block[g]);
  }
}

void scan_any(const Codes& codes, const float* z, Scan& result) {
  switch (codes.depth) {
    case 1:
      return scan<1>(codes, z, result);
    case 2:
      return scan<2>(codes, z, result);
    case 3:
      return scan<3>(codes, z, result);
    case 4:
      return scan<4>(codes, z, result);
    default:
      return scan<0>(codes, z, result);
  }
}

// The lowest index of the least |z - e|^2 among codes [begin, end), whole blocks, in double.
template <typename T>
int64_t search(const Codes& codes, const T* z, int64_t stride, int64_t begin, int64_t end) {
  double least = __builtin_inf();
  int64_t index = 0;
  for (int64_t first = begin; first < end; first += kCodeBlock) {
    constexpr int kVectors = kCodeBlock / kDoubles;
    VecD distance[kVectors] = {};
    for (int64_t d = 0; d < codes.depth; ++d) {
      double value = double(to_float(z[d * stride]));
      const float* column = codes.transposed + d * codes.padded + first;
      for (int v = 0; v < kVectors; ++v) {
        VecD e = __builtin_convertvector(load_raw<VecF>(column + v * kDoubles), VecD);
        VecD difference = value - e;
        distance[v] += difference * difference;
      }
    }
    double flat[kCodeBlock];
    std::memcpy(flat, distance, sizeof(flat));
    for (int k = 0; k < kCodeBlock; ++k) {
      if (flat[k] < least) {
        least = flat[k];
        index = first + k;
      }
    }
  }
  return index;
}

// Pixels [first, first + count), count <= kTile; z: room for [depth][kTile].
template <typename T>
void run_tile(const NearestCodeArgs& a, const Codes& codes, int64_t first, int count, float* z) {
  const T* source = static_cast<const T*>(a.z);
  T* target = static_cast<T*>(a.quantised);
  const int64_t stride = a.channels_last ? 1 : a.plane;
  int64_t offsets[kTile];
  float lengths[kTile];
  for (int i = 0; i < kTile; ++i) {
    int64_t pixel = first + (i < count ? i : count - 1);
    offsets[i] =
        a.channels_last ? pixel * a.depth : pixel / a.plane * a.depth * a.plane + pixel % a.plane;
    float square = 0;
    for (int64_t d = 0; d < a.depth; ++d) {
      float shifted = to_float(source[offsets[i] + d * stride]) - codes.centre[d];
      z[d * kTile + i] = shifted;
      square += shifted * shifted;
    }
    lengths[i] = __builtin_sqrtf(square);
  }
  Scan found;
  scan_any(codes, z, found);
  // Twice the rounding error that two scores can have between them: the inputs of each product are
  // rounded once by the shift, each of the depth + 1 sums once.
  const float unit = 0x1p-24f * float(a.depth + 4) * 4 * codes.radius;
  for (int i = 0; i < count; ++i) {
    float doubt = unit * (codes.radius + 2 * lengths[i]);
    const T* vector = source + offsets[i];
    int64_t begin = 0, end = codes.padded;
    // False for what is not a number or not finite, too.
    if (found.second[i] > found.best[i] + doubt) {
      begin = found.block[i] * kCodeBlock;
      end = begin + kCodeBlock;
    }
    int64_t index = search(codes, vector, stride, begin, end);
    a.indices[first + i] = index;
    for (int64_t d = 0; d < a.depth; ++d) {
      put(target + offsets[i] + d * stride, a.codebook[index * a.depth + d]);
    }
  }
}

}  // namespace

void nearest_code(const NearestCodeArgs& a) {
  if (a.pixels == 0) return;
  const Codes codes = prepare(a);
  float* tiles = a.workspace + a.depth + codes.padded * (2 * a.depth + 1);
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_for((a.pixels + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        int64_t first = tile * kTile, rest = a.pixels - first;
        run_tile<T>(a, codes, first, rest < kTile ? int(rest) : kTile,
                    tiles + tile * kTile * a.depth);
      }
    });
  });
}

}  // namespace lddgan::LDDGAN_ISA
