// Adaptive group norm, then a resampling by two, beside that of the shortcut; channels_last.
//
// A thread keeps to a pack of channels and walks along W: the vertical sums of the columns that the
// filter reaches stay in registers, so a value of x is read, and activated, by two (down) or three
// (up) threads. A block takes some packs of one sample, for which it merges the moments first;
// where the shortcut is another tensor, further blocks resample it.
#include "lddgan/norm_resample.h"

#include "ada_group_norm.cuh"

namespace lddgan {

namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 8;  // packs of channels of a block, at most
static_assert(8 * kColumns <= kThreads, "a thread merges the moments of one channel");
constexpr int64_t kEnoughThreads = 1 << 16;  // past these, threads walk further instead

struct Cut {
  int columns;              // packs of channels of a block
  int chunks, skip_chunks;  // blocks along the channels: of x, and of another tensor
  int segment, segments;    // outputs (down) or inputs (up) along W of a thread; its pieces
  int steps, blocks;        // rows of those; blocks along steps and segments
};

// What a thread's channels are normalised by (NormRow).
template <typename T, int VEC>
struct Rows {
  float at[VEC], gain[VEC], shift[VEC];
  bool silu;
  __device__ __forceinline__ float act(float x, int e) const {
    float y = (x - at[e]) * gain[e] + shift[e];
    return silu ? y * sigmoid<T>(y) : y;
  }
};

// One image, or x normalised and x itself: `h` or `s` is null where it is not wanted.
template <typename T>
struct Images {
  const T* x;  // of the sample, at the thread's channels; so are h and s
  T* h;
  T* s;
  int channels, height, width;
};

// Vertical sums of one column: those of the step's output rows, one (down) or two (up).
template <bool UP, int VEC>
struct Column {
  static constexpr int kRows = UP ? 2 : 1;
  float v[kRows][VEC];
};

// The rows that a step reaches: for one outside the image the nearest, which then weighs nothing.
template <bool UP>
struct Reach {
  static constexpr int kRows = UP ? 3 : 4;
  int rows[kRows];
  float outer[2];  // weights of the first and the last
  template <typename T>
  __device__ __forceinline__ Reach(const Images<T>& of, int step) {
    const int first = UP ? step - 1 : 2 * step - 1, last = first + kRows - 1;
    const float weight = UP ? 0.25f : 0.125f;
    outer[0] = first < 0 ? 0.0f : weight;
    outer[1] = last >= of.height ? 0.0f : weight;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      rows[r] = min(max(first + r, 0), of.height - 1);
    }
  }
};

// The sums of a column of x, as it is (s) and after act (h). All rows are asked for at once.
template <bool NORM, bool RAW, bool UP, int VEC, typename T>
__device__ __forceinline__ void sum_column(const Images<T>& of, const Rows<T, VEC>& rows,
                                           const Reach<UP>& reach, int column, Column<UP, VEC>& h,
                                           Column<UP, VEC>& s) {
  constexpr int kRows = Reach<UP>::kRows;
  const bool inside = column >= 0 && column < of.width;
  const T* from = of.x + int64_t(min(max(column, 0), of.width - 1)) * of.channels;
  NormPack<T, VEC> packs[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    packs[r] = *reinterpret_cast<const NormPack<T, VEC>*>(from + int64_t(reach.rows[r]) *
                                                                     (of.width * of.channels));
  }
  auto add = [&](Column<UP, VEC>& to, const float (&y)[kRows], int e) {
    if constexpr (UP) {
      const float middle = 0.75f * y[1];
      to.v[0][e] = inside ? reach.outer[0] * y[0] + middle : 0.0f;
      to.v[1][e] = inside ? reach.outer[1] * y[2] + middle : 0.0f;
    } else {
      const float middle = 0.375f * (y[1] + y[2]);
      to.v[0][e] = inside ? reach.outer[0] * y[0] + (reach.outer[1] * y[3] + middle) : 0.0f;
    }
  };
#pragma unroll
  for (int e = 0; e < VEC; ++e) {
    float x[kRows], y[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      x[r] = packs[r].value(e);
      y[r] = NORM ? rows.act(x[r], e) : 0.0f;
    }
    if (NORM) add(h, y, e);
    if (RAW) add(s, x, e);
  }
}

// The pack at (row, column) of an output of `width` columns: the horizontal sum of columns.
template <bool UP, int VEC, typename T, typename... Columns>
__device__ __forceinline__ void put(T* image, int64_t row, int width, int column, int channels,
                                    int k, const float (&weights)[sizeof...(Columns)],
                                    const Columns&... columns) {
  float out[VEC];
#pragma unroll
  for (int e = 0; e < VEC; ++e) {
    int i = 0;
    out[e] = 0;
    ((out[e] += weights[i++] * columns.v[k][e]), ...);
  }
  *reinterpret_cast<NormPack<T, VEC>*>(image + (row * width + column) * channels) =
      NormPack<T, VEC>::of(out);
}

// One step's outputs along W: [begin, end) of them (down), or of the inputs that they lie at (up).
template <bool NORM, bool RAW, bool UP, int VEC, typename T>
__device__ __forceinline__ void walk(const Images<T>& of, const Rows<T, VEC>& rows, int step,
                                     int begin, int end) {
  Column<UP, VEC> h[4], s[4];
  const Reach<UP> reach(of, step);
  auto sum = [&](int column, int k) { sum_column<NORM, RAW>(of, rows, reach, column, h[k], s[k]); };
  auto write = [&](T* image, const Column<UP, VEC>* c, int i) {
    if constexpr (UP) {
      int width = 2 * of.width;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        put<UP, VEC>(image, 2 * step + k, width, 2 * i, of.channels, k, {0.25f, 0.75f}, c[0], c[1]);
        put<UP, VEC>(image, 2 * step + k, width, 2 * i + 1, of.channels, k, {0.75f, 0.25f}, c[1],
                     c[2]);
      }
    } else {
      put<UP, VEC>(image, step, of.width / 2, i, of.channels, 0, {0.125f, 0.375f, 0.375f, 0.125f},
                   c[0], c[1], c[2], c[3]);
    }
  };
  constexpr int kNew = UP ? 1 : 2;  // columns a turn; two are left of the turn before
  sum(kNew * begin - 1, 0);
  sum(kNew * begin, 1);
  for (int i = begin; i < end; ++i) {
#pragma unroll
    for (int k = 0; k < kNew; ++k) sum(kNew * i + 1 + k, 2 + k);
    if (NORM) write(of.h, h, i);
    if (RAW) write(of.s, s, i);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      h[k] = h[k + kNew];
      s[k] = s[k + kNew];
    }
  }
}

// The rows of channels [first, first + count) of a sample into shared memory; ends with a barrier.
// The first block of a sample's channels also writes their groups' statistics.
__device__ __forceinline__ void merge_rows(const AdaGroupNormArgs& a, const float* partial,
                                           int parts, int64_t sample, int first, int count,
                                           int width, bool writes, float* rows) {
  int cpg = int(a.channels1 / a.groups), first_group = first / cpg;
  int groups = (first + count - 1) / cpg - first_group + 1;
  const GroupMoments moments{rows + 3 * width, groups};
  RowElement scale, shift;  // of the thread's channel
  if (threadIdx.x < count) {
    scale = RowElement(a.scale, sample, first + threadIdx.x);
    shift = RowElement(a.shift, sample, first + threadIdx.x);
  }
  merge_parts(partial + sample * a.groups * parts * 2, first_group, cpg, a.pixels, parts, a.eps,
              moments);
  __syncthreads();
  if (threadIdx.x < count) {
    const int i = threadIdx.x, g = (first + i) / cpg - first_group;
    const Center mean = moments.mean(g);
    const NormRow row = norm_row(scale.value(a.scale.dtype), shift.value(a.shift.dtype),
                                 {mean.at, 0}, mean.missed, moments.rstd(g));
    rows[i] = row.at;
    rows[width + i] = row.gain;
    rows[2 * width + i] = row.shift;
  }
  for (int g = threadIdx.x; g < groups && writes; g += blockDim.x) {
    if ((first_group + g) * cpg < first) continue;  // the block before has it
    int64_t i = sample * a.groups + first_group + g;
    moments.save(g, a.mean + i, a.rstd + i);
  }
  __syncthreads();
}

template <typename T, int VEC, bool UP, bool SAME>
__global__ void __launch_bounds__(kThreads, 3)
    norm_resample_kernel(NormResampleArgs a, const float* __restrict__ partial, int parts,
                         Cut cut) {
  int along = blockIdx.x % cut.blocks, block = blockIdx.x / cut.blocks;
  int chunk = block % (cut.chunks + cut.skip_chunks);
  int64_t sample = block / (cut.chunks + cut.skip_chunks);
  bool own = SAME || chunk < cut.chunks;
  int width = cut.columns * VEC, channels = int(own ? a.norm.channels1 : a.skip_channels);
  int first = (own ? chunk : chunk - cut.chunks) * width, count = min(width, channels - first);
  LDDGAN_DYNAMIC_SHARED(float, shared);
  if (own) {
    merge_rows(a.norm, partial, parts, sample, first, count, width, along == 0, shared);
  }
  int row = threadIdx.x / cut.columns, channel = threadIdx.x % cut.columns * VEC;
  int piece = along * (kThreads / cut.columns) + row;
  if (row >= kThreads / cut.columns || piece >= cut.steps * cut.segments || channel >= count) {
    return;
  }
  int step = piece / cut.segments, begin = piece % cut.segments * cut.segment;
  int end = min(begin + cut.segment, int(UP ? a.width : a.width / 2));
  int64_t pixels = a.height * a.width;
  int64_t out_pixels = UP ? 4 * pixels : (a.height / 2) * (a.width / 2);
  int64_t from = sample * pixels * channels + first + channel;
  int64_t to = sample * out_pixels * channels + first + channel;
  Images<T> of{static_cast<const T*>(own ? a.norm.x : a.skip) + from,
               static_cast<T*>(a.norm.out) + to,
               static_cast<T*>(a.skip_out) + to,
               channels,
               int(a.height),
               int(a.width)};
  Rows<T, VEC> rows;
  rows.silu = a.norm.silu;
  if (own) {
    read_column<VEC>(shared + channel, 0, rows.at);
    read_column<VEC>(shared + width + channel, 0, rows.gain);
    read_column<VEC>(shared + 2 * width + channel, 0, rows.shift);
  }
  if (SAME) {
    walk<true, true, UP, VEC>(of, rows, step, begin, end);
  } else if (own) {
    walk<true, false, UP, VEC>(of, rows, step, begin, end);
  } else {
    walk<false, true, UP, VEC>(of, rows, step, begin, end);
  }
}

template <typename T, int VEC, bool UP, bool SAME>
cudaError_t launch(const NormResampleArgs& a, const float* partial, int parts, void* stream) {
  Cut cut{};
  int packs = int(a.norm.channels1) / VEC;
  cut.columns = packs < kColumns ? packs : kColumns;
  cut.chunks = (packs + cut.columns - 1) / cut.columns;
  cut.skip_chunks = SAME ? 0 : (int(a.skip_channels) / VEC + cut.columns - 1) / cut.columns;
  int64_t chunks = a.norm.samples * (cut.chunks + cut.skip_chunks);
  int length = int(UP ? a.width : a.width / 2);
  cut.steps = int(UP ? a.height : a.height / 2);
  cut.segment = length;
  while (cut.segment > 1 &&
         chunks * cut.columns * cut.steps * (length / cut.segment) < kEnoughThreads) {
    cut.segment = (cut.segment + 1) / 2;
  }
  cut.segments = (length + cut.segment - 1) / cut.segment;
  int rows = kThreads / cut.columns;
  cut.blocks = (cut.steps * cut.segments + rows - 1) / rows;
  size_t floats = 7 * size_t(cut.columns) * VEC;  // rows; moments of as many groups at most
  return launch_kernel(norm_resample_kernel<T, VEC, UP, SAME>, unsigned(chunks * cut.blocks),
                       kThreads, floats * sizeof(float), stream, 1, a, partial, parts, cut);
}

}  // namespace

int norm_resample_cuda(const NormResampleArgs& a, const float* partial, int parts, void* stream) {
  auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  bool aligns = aligned(a.norm.x) && aligned(a.norm.out) && aligned(a.skip) && aligned(a.skip_out);
  return visit_packs(
      a.norm.dtype, true,
      [&](auto vec) { return aligns && a.norm.channels1 % vec == 0 && a.skip_channels % vec == 0; },
      [&](auto* type, auto vec, auto) {
        using T = std::remove_pointer_t<decltype(type)>;
        bool same = a.skip == a.norm.x;
        if (a.up) {
          return same ? launch<T, vec(), true, true>(a, partial, parts, stream)
                      : launch<T, vec(), true, false>(a, partial, parts, stream);
        }
        return same ? launch<T, vec(), false, true>(a, partial, parts, stream)
                    : launch<T, vec(), false, false>(a, partial, parts, stream);
      });
}

}  // namespace lddgan
