// Adaptive group norm, then a resampling by two, beside that of the shortcut; down only: going up,
// norm and filter one after the other are as fast. The normalised rows that the filter reaches are
// kept as floats; x is read from the cache again after its statistics.
#include "lddgan/norm_resample.h"

#include "ada_group_norm_channels_last.h"
#include "upfirdn2d_channels_last.h"

namespace lddgan::LDDGAN_ISA {

namespace {

constexpr int kRing = 4;  // rows kept: a filter of four taps reaches no further

// What a sample's channels are normalised by: y = act((x - q) * gain + shift).
struct Affine {
  const float *q, *gain, *shift;
};

// Output rows [begin, end) of an image of sample n: prepare(row) once for every row that the filter
// reaches, in order; row_at(row) is where it lies then, its pixels in_step elements apart.
template <typename T, typename Prepare, typename RowAt>
void filter(const NormResampleArgs& a, int64_t channels, int64_t in_step, void* to, int64_t n,
            int64_t begin, int64_t end, bool stream, const Prepare& prepare, const RowAt& row_at) {
  RowWalk walk{channels, a.width, resampled(a, a.width), in_step, channels, 1, {}};
  for (int j = 0; j < kTaps; ++j) walk.weights.f[j] = resample_weight(j);
  const int64_t out_row = walk.out_w * channels;
  T* out = static_cast<T*>(to) + n * resampled(a, a.height) * out_row;
  int64_t made = begin == 0 ? 0 : 2 * begin - 1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = 2 * i - 1;
    for (; made < first + kTaps && made < a.height; ++made) prepare(made);
    decltype(row_at(0)) rows[kTaps];
    for (int k = 0; k < kTaps; ++k) {
      const int64_t row = first + k;
      rows[k] = row >= 0 && row < a.height ? row_at(row) : nullptr;
    }
    resample_rows<false>(walk, rows, out + i * out_row, static_cast<T*>(nullptr), stream);
  }
}

// Output rows [begin, end) of both images of sample n.
template <typename T, bool kSilu>
void write_sample(const NormResampleArgs& a, int64_t n, const Affine& affine, float* ring,
                  int64_t step, bool stream, int64_t begin, int64_t end) {
  const int64_t channels = a.norm.channels1, row_size = a.width * channels;
  const T* x = static_cast<const T*>(a.norm.x) + n * a.height * row_size;
  auto row_at = [&](int64_t row) -> const float* { return ring + row % kRing * a.width * step; };
  auto normalise_row = [&](int64_t row) {
    float* to = ring + row % kRing * a.width * step;
    for (int64_t p = 0; p < a.width; ++p) {
      const T* from = x + row * row_size + p * channels;
      for_vectors<kForwardBlock>(channels, [&](int64_t i, auto lanes) {
        normalise<T, kSilu, false>(
            from + i, to + p * step + i, row_size, lanes, [&](int v, Vec value) {
              const int64_t j = i + v * kWidth;
              return (value - load(affine.q + j)) * load(affine.gain + j) + load(affine.shift + j);
            });
      });
    }
  };
  filter<T>(a, channels, step, a.norm.out, n, begin, end, stream, normalise_row, row_at);
  const T* skip = static_cast<const T*>(a.skip) + n * a.height * a.width * a.skip_channels;
  filter<T>(
      a, a.skip_channels, a.skip_channels, a.skip_out, n, begin, end, stream, [](int64_t) {},
      [&](int64_t row) { return skip + row * a.width * a.skip_channels; });
  if (stream) stream_fence();
}

template <typename T>
void take_block(const NormResampleArgs& a, BlockRows& rows, int64_t n, int64_t first,
                int64_t last) {
  Segment part;
  segments(a.norm, n, first, last, &part);
  rows.take<T>(a.norm, n, first, last, &part, 1);
}

// A thread takes whole samples, each while it is in the cache.
template <typename T, bool kSilu>
void by_sample(const NormResampleArgs& a, bool stream) {
  const int64_t channels = a.norm.channels1, step = Workspace::padded(channels);
  const int64_t ring_size = kRing * a.width * step;
  parallel_for(a.norm.samples, grain(channels * a.norm.pixels), [&](int64_t begin, int64_t end) {
    Workspace workspace(BlockRows::floats(channels, a.norm.groups) + Workspace::padded(ring_size));
    BlockRows rows(workspace, channels, a.norm.groups);
    float* ring = workspace.take(ring_size);
    for (int64_t n = begin; n < end; ++n) {
      take_block<T>(a, rows, n, 0, channels);
      write_sample<T, kSilu>(a, n, {rows.q, rows.gain, rows.shift}, ring, step, stream, 0,
                             a.height / 2);
    }
  });
}

// Threads share a sample: its statistics by blocks of channels, then its rows.
template <typename T, bool kSilu>
void by_row(const NormResampleArgs& a, int64_t block, bool stream) {
  const int64_t channels = a.norm.channels1, step = Workspace::padded(channels);
  const int64_t blocks = (channels + block - 1) / block;
  const int64_t groups = block / (channels / a.norm.groups), ring_size = kRing * a.width * step;
  Workspace shared(3 * a.norm.samples * step);
  float* arrays[3];
  for (float*& array : arrays) array = shared.take(a.norm.samples * step);
  parallel_for(a.norm.samples * blocks, grain(block * a.norm.pixels),
               [&](int64_t begin, int64_t end) {
                 Workspace workspace(BlockRows::floats(block, groups));
                 BlockRows rows(workspace, block, groups);
                 for (int64_t item = begin; item < end; ++item) {
                   const int64_t n = item / blocks, first = item % blocks * block;
                   const int64_t last = first + block < channels ? first + block : channels;
                   take_block<T>(a, rows, n, first, last);
                   const float* const found[3] = {rows.q, rows.gain, rows.shift};
                   for (int k = 0; k < 3; ++k) {
                     float* to = arrays[k] + n * step + first;
                     for (int64_t i = 0; i < last - first; ++i) to[i] = found[k][i];
                   }
                 }
               });
  const int64_t rows_out = a.height / 2;
  const int64_t per_row = a.width * (channels + a.skip_channels) * 4;
  parallel_for(a.norm.samples * rows_out, grain(per_row), [&](int64_t begin, int64_t end) {
    Workspace workspace(Workspace::padded(ring_size));
    float* ring = workspace.take(ring_size);
    for (int64_t i = begin; i < end;) {
      const int64_t n = i / rows_out, first = i % rows_out;
      const int64_t last = first + end - i < rows_out ? first + end - i : rows_out;
      const Affine affine{arrays[0] + n * step, arrays[1] + n * step, arrays[2] + n * step};
      write_sample<T, kSilu>(a, n, affine, ring, step, stream, first, last);
      i += last - first;
    }
  });
}

template <typename T, bool kSilu>
void run(const NormResampleArgs& a) {
  const int64_t block = block_channels(a.norm, sizeof(T));
  const int64_t pixels = a.norm.samples * resampled(a, a.height) * resampled(a, a.width);
  const bool stream = (a.norm.channels1 | a.skip_channels) % kWidth == 0 &&
                      should_stream(pixels * a.norm.channels1 * int64_t(sizeof(T)));
  if (block == a.norm.channels1) {
    by_sample<T, kSilu>(a, stream);
  } else {
    by_row<T, kSilu>(a, block, stream);
  }
}

}  // namespace

void norm_resample(const NormResampleArgs& a) {
  visit(a.norm.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    a.norm.silu ? run<T, true>(a) : run<T, false>(a);
  });
}

}  // namespace lddgan::LDDGAN_ISA
