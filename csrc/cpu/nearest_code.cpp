// The nearest code of each vector, exactly as a search in double precision finds it.
//
// Codes and pixels are sorted along a space-filling curve, so that a block of codes and a tile of
// pixels are each close together; a tile passes over the blocks whose bounding box is farther than
// what it has. Scan: for a tile, one pixel a lane, s_k = |e_k|^2 - 2 z.e_k in float32, with z and
// the codes shifted by the codebook's mean so that few digits cancel; the least and second least of
// the minima over blocks are kept. Search: the winning block again, in double, on the values as
// given; the whole codebook where a second block comes within rounding error of the first.
#include "nearest_code.h"

#include "parallel.h"
#include "vec.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr int kGroups = kRegisters == 32 ? 4 : 2;  // of kWidth pixels; bounded by the registers
constexpr int kTile = kGroups * kWidth;
constexpr int64_t kSegment = 512;      // blocks whose bounds are computed at a time
constexpr int64_t kSortChunk = 16384;  // pixels sorted together
constexpr int64_t kFewBlocks = 8;      // below, sorting costs more than it saves
constexpr float kUnit = 0x1p-24f;
static_assert(kPixelTile % kTile == 0);

typedef double VecD __attribute__((vector_size(kWidth * 4), may_alias));
typedef float VecF __attribute__((vector_size(kWidth * 2), may_alias));  // as many as VecD holds
constexpr int kDoubles = kWidth / 2;

LDDGAN_INLINE VecD load_doubles(const float* p) {
#if defined(LDDGAN_NEON)
  return (VecD)vcvt_f64_f32(vld1_f32(p));  // GCC would convert one after the other
#else
  return __builtin_convertvector(load_raw<VecF>(p), VecD);
#endif
}

struct Codes {
  float* centre;      // [depth]
  float* scanned;     // [padded][depth + 1]: -2 (e - centre), |e - centre|^2
  float* transposed;  // [depth][padded]
  int32_t* ids;       // [padded]: a code's place in the codebook
  float* low;         // [depth][stride]: each block's box, shifted
  float* high;        // [depth][stride]
  int64_t blocks, padded, stride, depth;
  float radius;  // the largest |e - centre|
};

float infinity() { return __builtin_inff(); }

// The place along a Morton curve through the first dimensions: their leading bits, interleaved.
uint32_t curve_key(const float* vector, int64_t stride, int64_t depth, float scale) {
  const int dims = depth < 4 ? int(depth) : 4, bits = dims < 4 ? 10 : 7;
  uint32_t key = 0;
  uint32_t cells[4];
  for (int d = 0; d < dims; ++d) {
    float place = (vector[d * stride] * scale + 1) * float(1 << (bits - 1));
    float last = float((1 << bits) - 1);
    cells[d] = place > 0 ? uint32_t(place < last ? place : last) : 0;  // 0 for what is no number
  }
  for (int bit = bits - 1; bit >= 0; --bit) {
    for (int d = 0; d < dims; ++d) key = key << 1 | (cells[d] >> bit & 1);
  }
  return key;
}

// Sorts order = 0..count-1 by keys, stable; `keys` is changed, `spare` holds 2 * count.
void sort_by_key(uint32_t* keys, int32_t* order, uint32_t* spare, int64_t count) {
  uint32_t* other_keys = spare;
  int32_t* other_order = reinterpret_cast<int32_t*>(spare + count);
  for (int64_t i = 0; i < count; ++i) order[i] = int32_t(i);
  for (int shift = 0; shift < 32; shift += 8) {  // an even number of passes ends where it began
    int64_t starts[257] = {};
    for (int64_t i = 0; i < count; ++i) ++starts[(keys[i] >> shift & 255) + 1];
    for (int digit = 0; digit < 256; ++digit) starts[digit + 1] += starts[digit];
    for (int64_t i = 0; i < count; ++i) {
      int64_t at = starts[keys[i] >> shift & 255]++;
      other_keys[at] = keys[i];
      other_order[at] = order[i];
    }
    uint32_t* swapped_keys = keys;
    keys = other_keys;
    other_keys = swapped_keys;
    int32_t* swapped_order = order;
    order = other_order;
    other_order = swapped_order;
  }
}

Codes prepare(const NearestCodeArgs& a, uint32_t* spare) {
  Codes c;
  const int64_t depth = c.depth = a.depth;
  c.blocks = code_blocks(a.codes);
  c.padded = c.blocks * kCodeBlock;
  c.stride = c.blocks + kPixelTile;
  c.centre = a.workspace;
  c.scanned = c.centre + depth;
  c.transposed = c.scanned + c.padded * (depth + 1);
  c.ids = reinterpret_cast<int32_t*>(c.transposed + c.padded * depth);
  c.low = c.transposed + c.padded * (depth + 1);
  c.high = c.low + depth * c.stride;
  for (int64_t d = 0; d < depth; ++d) {
    double total = 0;
    for (int64_t k = 0; k < a.codes; ++k) total += a.codebook[k * depth + d];
    c.centre[d] = float(total / double(a.codes));
  }
  // Shifted, in the order given; `transposed` has room for it.
  float* shifted = c.transposed;
  float largest = 0;
  for (int64_t k = 0; k < a.codes; ++k) {
    float square = 0;
    for (int64_t d = 0; d < depth; ++d) {
      float value = a.codebook[k * depth + d] - c.centre[d];
      shifted[k * depth + d] = value;
      square += value * value;
    }
    if (square > largest) largest = square;
  }
  c.radius = __builtin_sqrtf(largest);
  uint32_t* keys = spare;
  for (int64_t k = 0; k < a.codes; ++k) {
    keys[k] = curve_key(shifted + k * depth, 1, depth, 1 / c.radius);
  }
  sort_by_key(keys, c.ids, spare + a.codes, a.codes);
  for (int64_t k = 0; k < c.padded; ++k) {
    bool real = k < a.codes;  // the padding lies at infinity
    float* row = c.scanned + k * (depth + 1);
    float square = real ? 0 : infinity();
    if (!real) c.ids[k] = INT32_MAX;
    for (int64_t d = 0; d < depth; ++d) {
      float value = real ? shifted[c.ids[k] * depth + d] : 0;
      row[d] = -2 * value;
      square += value * value;
      float& low = c.low[d * c.stride + k / kCodeBlock];
      float& high = c.high[d * c.stride + k / kCodeBlock];
      if (k % kCodeBlock == 0) low = high = value;
      if (real && value < low) low = value;
      if (real && value > high) high = value;
    }
    row[depth] = square;
  }
  for (int64_t d = 0; d < depth; ++d) {
    for (int64_t k = 0; k < c.padded; ++k) {
      bool real = k < a.codes;
      c.transposed[d * c.padded + k] =
          real ? a.codebook[int64_t(c.ids[k]) * depth + d] : infinity();
    }
  }
  return c;
}

// Per pixel of a tile.
struct Scan {
  float best[kTile];    // the least s_k
  float second[kTile];  // the least s_k outside the block of the best
  int32_t block[kTile];
  float square[kTile];  // |z|^2
  float doubt[kTile];   // twice the rounding error that two scores can have between them
};

// One block for all pixels of a tile; D is the depth, or 0 where it is known at run time only.
// z: [depth][kTile], shifted. Returns the distance^2 beyond which no code can matter to the tile.
template <int D>
float scan_block(const Codes& codes, int64_t index, const float* z, Scan& result) {
  const int64_t depth = D ? D : codes.depth;
  Vec held[D ? D : 1][kGroups], low[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    low[g] = broadcast(infinity());
    for (int d = 0; d < D; ++d) held[d][g] = load(z + d * kTile + g * kWidth);
  }
  const float* row = codes.scanned + index * kCodeBlock * (depth + 1);
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
  Vec farthest = broadcast(-infinity());
  for (int g = 0; g < kGroups; ++g) {
    const int at = g * kWidth;
    Vec best = load(result.best + at), second = load(result.second + at);
    VecI block = select(low[g] < best, VecI{} + int32_t(index), load_raw<VecI>(result.block + at));
    second = min(max(low[g], best), second);
    best = min(low[g], best);
    store(result.best + at, best);
    store(result.second + at, second);
    store_raw(result.block + at, block);
    farthest = max(best + load(result.square + at) + load(result.doubt + at), farthest);
  }
  float limit = farthest[0];
  for (int i = 1; i < kWidth; ++i) limit = farthest[i] > limit ? farthest[i] : limit;
  return limit;
}

float scan_any(const Codes& codes, int64_t index, const float* z, Scan& result) {
  switch (codes.depth) {
    case 1:
      return scan_block<1>(codes, index, z, result);
    case 2:
      return scan_block<2>(codes, index, z, result);
    case 3:
      return scan_block<3>(codes, index, z, result);
    case 4:
      return scan_block<4>(codes, index, z, result);
    default:
      return scan_block<0>(codes, index, z, result);
  }
}

void scan_tile(const Codes& codes, const float* z, Scan& result) {
  float bounds[kSegment + kWidth];
  const Vec slack = broadcast(1 - 4 * kUnit * float(codes.depth + 4));
  float limit = infinity();
  for (int64_t first = 0; first < codes.blocks; first += kSegment) {
    const int64_t rest = codes.blocks - first, count = rest < kSegment ? rest : kSegment;
    // Squared distances between the tile's box and each block's.
    for (int64_t b = 0; b < count; b += kWidth) store(bounds + b, Vec{});
    for (int64_t d = 0; d < codes.depth; ++d) {
      float from = infinity(), to = -infinity();
      for (int i = 0; i < kTile; ++i) {
        float value = z[d * kTile + i];
        from = value < from ? value : from;
        to = value > to ? value : to;
      }
      for (int64_t b = 0; b < count; b += kWidth) {
        const int64_t at = d * codes.stride + first + b;
        Vec gap = max(max(load(codes.low + at) - to, from - load(codes.high + at)), Vec{});
        store(bounds + b, load(bounds + b) + gap * gap * slack);
      }
    }
    int64_t nearest = 0;
    for (int64_t b = 1; b < count; ++b) nearest = bounds[b] < bounds[nearest] ? b : nearest;
    if (bounds[nearest] <= limit) limit = scan_any(codes, first + nearest, z, result);
    for (int round = 0; round < 2; ++round) {  // overlapping boxes first: they lower the limit
      for (int64_t b = 0; b < count; ++b) {
        bool now = round == 0 ? bounds[b] == 0 : bounds[b] > 0 && bounds[b] <= limit;
        if (now && b != nearest) limit = scan_any(codes, first + b, z, result);
      }
    }
  }
}

// The lowest place in the codebook of the least |z - e|^2 in blocks [begin, end), in double.
template <typename T>
int64_t search(const Codes& codes, const T* z, int64_t stride, int64_t begin, int64_t end) {
  double least = __builtin_inf();
  int32_t index = 0;
  for (int64_t first = begin * kCodeBlock; first < end * kCodeBlock; first += kCodeBlock) {
    constexpr int kVectors = kCodeBlock / kDoubles;
    VecD distance[kVectors] = {};
    for (int64_t d = 0; d < codes.depth; ++d) {
      double value = double(to_float(z[d * stride]));
      const float* column = codes.transposed + d * codes.padded + first;
      for (int v = 0; v < kVectors; ++v) {
        VecD e = load_doubles(column + v * kDoubles);
        VecD difference = value - e;
        distance[v] += difference * difference;
      }
    }
    VecD low = distance[0];
    for (int v = 1; v < kVectors; ++v) low = distance[v] < low ? distance[v] : low;
    double flat[kCodeBlock], here = low[0];
    for (int i = 1; i < kDoubles; ++i) here = low[i] < here ? low[i] : here;
    if (!(here <= least) || here == __builtin_inf()) continue;
    if (here < least) index = INT32_MAX;
    least = here;
    std::memcpy(flat, distance, sizeof(flat));
    for (int k = 0; k < kCodeBlock; ++k) {
      int32_t id = flat[k] == least ? codes.ids[first + k] : INT32_MAX;
      index = id < index ? id : index;
    }
  }
  return index;
}

// How the vectors lie in z.
struct Pixels {
  int64_t plane, depth, stride;
  bool channels_last;

  explicit Pixels(const NearestCodeArgs& a)
      : plane(a.plane),
        depth(a.depth),
        stride(a.channels_last ? 1 : a.plane),
        channels_last(a.channels_last) {}

  int64_t offset(int64_t pixel) const {
    return channels_last ? pixel * depth : pixel / plane * depth * plane + pixel % plane;
  }
};

// order[0..count) = the pixels first.., along the curve. keys: room for 3 * count.
template <typename T>
void sort_pixels(const NearestCodeArgs& a, const Codes& codes, int64_t first, int64_t count,
                 int32_t* order, uint32_t* keys) {
  const Pixels pixels(a);
  for (int64_t i = 0; i < count; ++i) {
    const T* z = static_cast<const T*>(a.z) + pixels.offset(first + i);
    float shifted[4];
    for (int64_t d = 0; d < 4 && d < a.depth; ++d) {
      shifted[d] = to_float(z[d * pixels.stride]) - codes.centre[d];
    }
    keys[i] = curve_key(shifted, 1, a.depth, 1 / codes.radius);
  }
  sort_by_key(keys, order, keys + count, count);
}

// The pixels base + order[0..count), count <= kTile; z: room for [depth][kTile].
template <typename T>
void run_tile(const NearestCodeArgs& a, const Codes& codes, int64_t base, const int32_t* order,
              int count, float* z) {
  const Pixels pixels(a);
  const T* source = static_cast<const T*>(a.z);
  T* target = static_cast<T*>(a.quantised);
  int64_t offsets[kTile];
  Scan found;
  for (int i = 0; i < kTile; ++i) {
    offsets[i] = pixels.offset(base + order[i < count ? i : count - 1]);
    float square = 0;
    for (int64_t d = 0; d < a.depth; ++d) {
      float shifted = to_float(source[offsets[i] + d * pixels.stride]) - codes.centre[d];
      z[d * kTile + i] = shifted;
      square += shifted * shifted;
    }
    float reach = codes.radius + __builtin_sqrtf(square);
    found.best[i] = found.second[i] = infinity();
    found.block[i] = 0;
    found.square[i] = square;
    // The inputs of each product are rounded once by the shift, each of the depth + 1 sums once.
    found.doubt[i] = 4 * kUnit * float(a.depth + 4) * reach * reach;
  }
  scan_tile(codes, z, found);
  for (int i = 0; i < count; ++i) {
    int64_t begin = 0, end = codes.blocks;
    // False for what is not a number or not finite, too.
    if (found.second[i] > found.best[i] + found.doubt[i]) {
      begin = found.block[i];
      end = begin + 1;
    }
    int64_t index = search(codes, source + offsets[i], pixels.stride, begin, end);
    a.indices[base + order[i]] = index;
    for (int64_t d = 0; d < a.depth; ++d) {
      put(target + offsets[i] + d * pixels.stride, a.codebook[index * a.depth + d]);
    }
  }
}

}  // namespace

void nearest_code(const NearestCodeArgs& a) {
  if (a.pixels == 0) return;
  int64_t tiles = (a.pixels + kPixelTile - 1) / kPixelTile * kPixelTile;
  int64_t blocks = code_blocks(a.codes), padded = blocks * kCodeBlock;
  float* vectors =
      a.workspace + a.depth + padded * (2 * a.depth + 2) + 2 * a.depth * (blocks + kPixelTile);
  int32_t* order = reinterpret_cast<int32_t*>(vectors + tiles * a.depth);
  uint32_t* spare = reinterpret_cast<uint32_t*>(order + tiles);
  const Codes codes = prepare(a, spare);
  spare += 3 * a.codes;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_for((a.pixels + kSortChunk - 1) / kSortChunk, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        int64_t first = chunk * kSortChunk, rest = a.pixels - first;
        int64_t count = rest < kSortChunk ? rest : kSortChunk;
        if (codes.blocks < kFewBlocks) {
          for (int64_t i = 0; i < count; ++i) order[first + i] = int32_t(i);
        } else {
          sort_pixels<T>(a, codes, first, count, order + first, spare + 3 * first);
        }
      }
    });
    static_assert(kSortChunk % kTile == 0);
    parallel_for((a.pixels + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        int64_t first = tile * kTile, rest = a.pixels - first;
        run_tile<T>(a, codes, first / kSortChunk * kSortChunk, order + first,
                    rest < kTile ? int(rest) : kTile, vectors + first * a.depth);
      }
    });
  });
}

}  // namespace lddgan::LDDGAN_ISA
