#include "lddgan/haar.h"

#include <climits>

#include "cuda.cuh"

namespace lddgan {

namespace {

constexpr int kThreads = 256;

struct Sizes {
  int64_t n, c, h, w;  // of one sub-band
};

// The 2x2 block (a, b, c, d) to (LL, LH, HL, HH) and, the matrix being symmetric and orthogonal,
// back. `factor` is half the scale.
__device__ __forceinline__ void butterfly(float& a, float& b, float& c, float& d, float factor) {
  float top = (a + b) * factor, top_step = (a - b) * factor;
  float bottom = (c + d) * factor, bottom_step = (c - d) * factor;
  a = top + bottom;
  b = top_step + bottom_step;
  c = top - bottom;
  d = top_step - bottom_step;
}

// A thread takes `size` columns of one row of a sub-band plane, contiguous. Index: int where every
// element's number fits.
template <typename T, int size, bool inverse, typename Index>
__global__ void __launch_bounds__(kThreads)
    haar_rows_kernel(const T* __restrict__ in, T* __restrict__ out, Sizes s, float factor) {
  Index h = Index(s.h), w = Index(s.w), c = Index(s.c), per_row = w / size;
  Index i = Index(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= Index(s.n) * c * h * per_row) return;
  Index row = i / per_row, x = (i - row * per_row) * size;
  Index top = row * 4 * w + 2 * x, bottom = top + 2 * w, band = c * h * w;
  // Three more sub-bands lie between a sample's first and the next sample's.
  Index first = (row / (c * h) * 3 * c * h + row) * w + x;
  float v[4][size], rows[2][2 * size];
  if constexpr (inverse) {
#pragma unroll
    for (int k = 0; k < 4; ++k) load_floats<size>(in + first + k * band, v[k]);
#pragma unroll
    for (int j = 0; j < size; ++j) {
      butterfly(v[0][j], v[1][j], v[2][j], v[3][j], factor);
      rows[0][2 * j] = v[0][j];
      rows[0][2 * j + 1] = v[1][j];
      rows[1][2 * j] = v[2][j];
      rows[1][2 * j + 1] = v[3][j];
    }
    constexpr int step = size == 1 ? 1 : 2 * size;
#pragma unroll
    for (int j = 0; j < 2 * size; j += step) {
      store_floats<step>(out + top + j, rows[0] + j);
      store_floats<step>(out + bottom + j, rows[1] + j);
    }
  } else {
    constexpr int step = size == 1 ? 1 : 2 * size;
#pragma unroll
    for (int j = 0; j < 2 * size; j += step) {
      load_floats<step>(in + top + j, rows[0] + j);
      load_floats<step>(in + bottom + j, rows[1] + j);
    }
#pragma unroll
    for (int j = 0; j < size; ++j) {
      v[0][j] = rows[0][2 * j];
      v[1][j] = rows[0][2 * j + 1];
      v[2][j] = rows[1][2 * j];
      v[3][j] = rows[1][2 * j + 1];
      butterfly(v[0][j], v[1][j], v[2][j], v[3][j], factor);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) store_floats<size>(out + first + k * band, v[k]);
  }
}

// A thread takes `size` channels of one sub-band pixel, channels_last.
template <typename T, int size, bool inverse, typename Index>
__global__ void __launch_bounds__(kThreads)
    haar_pixels_kernel(const T* __restrict__ in, T* __restrict__ out, Sizes s, float factor) {
  Index w = Index(s.w), c = Index(s.c), per_pixel = c / size;
  Index i = Index(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= Index(s.n) * Index(s.h) * w * per_pixel) return;
  Index pixel = i / per_pixel, channel = (i - pixel * per_pixel) * size;
  Index row = pixel / w, x = pixel - row * w;
  Index image = row * 4 * w * c + 2 * x * c + channel, first = pixel * 4 * c + channel;
  float v[4][size];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    load_floats<size>(in + (inverse ? first + k * c : image + (k / 2 * 2 * w + k % 2) * c), v[k]);
  }
#pragma unroll
  for (int j = 0; j < size; ++j) butterfly(v[0][j], v[1][j], v[2][j], v[3][j], factor);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    store_floats<size>(out + (inverse ? image + (k / 2 * 2 * w + k % 2) * c : first + k * c), v[k]);
  }
}

template <typename T, int size, bool inverse, typename Index>
cudaError_t launch_haar(const HaarArgs& a, void* stream) {
  auto kernel = a.channels_last ? haar_pixels_kernel<T, size, inverse, Index>
                                : haar_rows_kernel<T, size, inverse, Index>;
  const int64_t threads = a.n * a.c * a.h * a.w / size;
  return launch_kernel(kernel, unsigned((threads + kThreads - 1) / kThreads), kThreads, 0, stream,
                       1, static_cast<const T*>(a.in), static_cast<T*>(a.out),
                       Sizes{a.n, a.c, a.h, a.w}, 0.5f * a.scale);
}

template <bool inverse>
int run(const HaarArgs& a, void* stream) {
  const int64_t count = 4 * a.n * a.c * a.h * a.w;
  if (count == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  visit(a.dtype, [&](auto* type) {
    using T = typename DeviceType<std::remove_pointer_t<decltype(type)>>::type;
    constexpr int kSize = Pack<T>::kSize;
    const bool packed =
        (a.channels_last ? a.c : a.w) % kSize == 0 && can_pack<T>(a.in) && can_pack<T>(a.out);
    const bool small = count <= INT_MAX - 4 * kThreads * kSize;
    if (packed) {
      error = small ? launch_haar<T, kSize, inverse, int>(a, stream)
                    : launch_haar<T, kSize, inverse, int64_t>(a, stream);
    } else {
      error = small ? launch_haar<T, 1, inverse, int>(a, stream)
                    : launch_haar<T, 1, inverse, int64_t>(a, stream);
    }
  });
  return error;
}

}  // namespace

int haar_dwt2d_cuda(const HaarArgs& a, void* stream) { return run<false>(a, stream); }
int haar_idwt2d_cuda(const HaarArgs& a, void* stream) { return run<true>(a, stream); }

}  // namespace lddgan
