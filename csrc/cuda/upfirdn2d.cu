#include "lddgan/upfirdn2d.h"

#include <climits>

#include "cuda.cuh"

namespace lddgan {

namespace {

constexpr int kThreads = 256;
constexpr int kTaps = 4;  // of the kernels for a factor of two

// Weight j multiplies the stuffed signal at out * down - pad + j.
struct Weights {
  float f[kTaps];
};

__device__ __forceinline__ Weights weights_of(const Upfirdn2dArgs& a) {
  Weights w;
#pragma unroll
  for (int j = 0; j < kTaps; ++j) w.f[j] = a.taps[a.reversed ? j : kTaps - 1 - j];
  return w;
}

__device__ __forceinline__ float weigh_down(const Weights& w, float v0, float v1, float v2,
                                            float v3) {
  return w.f[0] * v0 + w.f[1] * v1 + w.f[2] * v2 + w.f[3] * v3;
}
__device__ __forceinline__ float weigh_even(const Weights& w, float v0, float v1) {
  return w.f[0] * v0 + w.f[2] * v1;
}
__device__ __forceinline__ float weigh_odd(const Weights& w, float v1, float v2) {
  return w.f[1] * v1 + w.f[3] * v2;
}

// --- Factor two, H -> H / 2 or 2 H exactly. A thread makes a tile of the output: contiguous, two
// rows of `size` (down) or 2 * size (up) columns; channels_last, `size` channels of two columns
// (down) or 2x2 (up) pixels. Rows and columns outside the image count as zero.

template <typename T, int size, typename Index>
__global__ void __launch_bounds__(kThreads) down_rows_kernel(const Upfirdn2dArgs a) {
  Index h = Index(a.h), w = Index(a.w), out_h = Index(a.out_h), out_w = Index(a.out_w);
  Index per_row = out_w / size, tile_rows = (out_h + 1) / 2;
  Index i = Index(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= Index(a.n) * Index(a.c) * tile_rows * per_row) return;
  Index tile_row = i / per_row, o = (i - tile_row * per_row) * size;
  Index plane = tile_row / tile_rows, y = (tile_row - plane * tile_rows) * 2;
  const T* x = static_cast<const T*>(a.x) + plane * h * w;
  T* out = static_cast<T*>(a.out) + (plane * out_h + y) * out_w + o;
  const Weights f = weights_of(a);
  float sums[2][size] = {};
#pragma unroll
  for (int r = 0; r < 6; ++r) {
    Index row = 2 * y - 1 + r;
    if (row < 0 || row >= h) continue;
    const T* p = x + row * w + 2 * o;
    float v[2 * size + 2];  // columns 2 o - 1 ...
    v[0] = o > 0 ? device_float(p[-1]) : 0.0f;
    v[2 * size + 1] = o + size < out_w ? device_float(p[2 * size]) : 0.0f;
    load_floats<2 * size>(p, v + 1);
#pragma unroll
    for (int j = 0; j < size; ++j) {
      float across = weigh_down(f, v[2 * j], v[2 * j + 1], v[2 * j + 2], v[2 * j + 3]);
      if (r < 4) sums[0][j] += f.f[r < 4 ? r : 0] * across;
      if (r >= 2) sums[1][j] += f.f[r >= 2 ? r - 2 : 0] * across;
    }
  }
  store_floats<size>(out, sums[0]);
  if (y + 1 < out_h) store_floats<size>(out + out_w, sums[1]);
}

template <typename T, int size, typename Index>
__global__ void __launch_bounds__(kThreads) up_rows_kernel(const Upfirdn2dArgs a) {
  Index h = Index(a.h), w = Index(a.w), per_row = w / size;
  Index i = Index(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= Index(a.n) * Index(a.c) * h * per_row) return;
  Index tile_row = i / per_row, x0 = (i - tile_row * per_row) * size, y = tile_row % h;
  const T* x = static_cast<const T*>(a.x) + tile_row * w + x0;
  T* out = static_cast<T*>(a.out) + tile_row * 4 * w + 2 * x0;
  const Weights f = weights_of(a);
  float v[3][size + 2];  // columns x0 - 1 ... of the rows above, here and below
#pragma unroll
  for (int r = 0; r < 3; ++r) {
#pragma unroll
    for (int j = 0; j < size + 2; ++j) v[r][j] = 0.0f;
    if (y + r < 1 || y + r > h) continue;
    const T* p = x + (r - 1) * w;
    if (x0 > 0) v[r][0] = device_float(p[-1]);
    if (x0 + size < w) v[r][size + 1] = device_float(p[size]);
    load_floats<size>(p, v[r] + 1);
  }
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    float down[size + 2], result[2 * size];
#pragma unroll
    for (int j = 0; j < size + 2; ++j) {
      down[j] = odd ? weigh_odd(f, v[1][j], v[2][j]) : weigh_even(f, v[0][j], v[1][j]);
    }
#pragma unroll
    for (int j = 0; j < size; ++j) {
      result[2 * j] = weigh_even(f, down[j], down[j + 1]);
      result[2 * j + 1] = weigh_odd(f, down[j + 1], down[j + 2]);
    }
    store_floats<2 * size>(out + odd * 2 * w, result);
  }
}

template <typename T, int size, typename Index>
__global__ void __launch_bounds__(kThreads) down_pixels_kernel(const Upfirdn2dArgs a) {
  Index h = Index(a.h), w = Index(a.w), c = Index(a.c), out_w = Index(a.out_w);
  Index per_pixel = c / size, tiles = (out_w + 1) / 2;
  Index i = Index(blockIdx.x) * kThreads + threadIdx.x;
  Index tile = i / per_pixel, channel = (i - tile * per_pixel) * size;
  Index row = tile / tiles, o = (tile - row * tiles) * 2;
  if (row >= Index(a.n) * Index(a.out_h)) return;
  Index n = row / Index(a.out_h), y = row - n * Index(a.out_h);
  const T* x = static_cast<const T*>(a.x) + n * h * w * c + channel;
  T* out = static_cast<T*>(a.out) + (row * out_w + o) * c + channel;
  const Weights f = weights_of(a);
  float sums[2][size] = {};
#pragma unroll
  for (int col = 0; col < 6; ++col) {
    Index at = 2 * o - 1 + col;
    if (at < 0 || at >= w) continue;
    float down[size] = {};
#pragma unroll
    for (int r = 0; r < kTaps; ++r) {
      Index from = 2 * y - 1 + r;
      if (from < 0 || from >= h) continue;
      float v[size];
      load_floats<size>(x + (from * w + at) * c, v);
#pragma unroll
      for (int j = 0; j < size; ++j) down[j] += f.f[r] * v[j];
    }
#pragma unroll
    for (int j = 0; j < size; ++j) {
      if (col < 4) sums[0][j] += f.f[col < 4 ? col : 0] * down[j];
      if (col >= 2) sums[1][j] += f.f[col >= 2 ? col - 2 : 0] * down[j];
    }
  }
  store_floats<size>(out, sums[0]);
  if (o + 1 < out_w) store_floats<size>(out + c, sums[1]);
}

template <typename T, int size, typename Index>
__global__ void __launch_bounds__(kThreads) up_pixels_kernel(const Upfirdn2dArgs a) {
  Index h = Index(a.h), w = Index(a.w), c = Index(a.c), per_pixel = c / size;
  Index i = Index(blockIdx.x) * kThreads + threadIdx.x;
  Index pixel = i / per_pixel, channel = (i - pixel * per_pixel) * size;
  Index row = pixel / w, x0 = pixel - row * w;
  if (row >= Index(a.n) * h) return;
  Index y = row % h;
  const T* x = static_cast<const T*>(a.x) + pixel * c + channel;
  T* out = static_cast<T*>(a.out) + (row * 4 * w + 2 * x0) * c + channel;
  const Weights f = weights_of(a);
  float top[2][size] = {}, bottom[2][size] = {};
#pragma unroll
  for (int col = 0; col < 3; ++col) {
    if (x0 + col < 1 || x0 + col > w) continue;
    float v[3][size] = {};
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      if (y + r < 1 || y + r > h) continue;
      load_floats<size>(x + ((r - 1) * w + (col - 1)) * c, v[r]);
    }
#pragma unroll
    for (int j = 0; j < size; ++j) {
      float even = weigh_even(f, v[0][j], v[1][j]), odd = weigh_odd(f, v[1][j], v[2][j]);
      // Columns x0 - 1 and x0 make the even output, x0 and x0 + 1 the odd one.
      if (col < 2) top[0][j] += f.f[2 * (col < 2 ? col : 0)] * even;
      if (col > 0) top[1][j] += f.f[2 * (col > 0 ? col : 1) - 1] * even;
      if (col < 2) bottom[0][j] += f.f[2 * (col < 2 ? col : 0)] * odd;
      if (col > 0) bottom[1][j] += f.f[2 * (col > 0 ? col : 1) - 1] * odd;
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    store_floats<size>(out + k * c, top[k]);
    store_floats<size>(out + (2 * w + k) * c, bottom[k]);
  }
}

// --- Any taps and factors: a thread makes one output, of `size` channels where channels_last.
template <typename T, int size>
__global__ void __launch_bounds__(kThreads) any_kernel(const Upfirdn2dArgs a) {
  int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.n * a.c * a.out_h * a.out_w / size) return;
  // Elements between neighbours along W; the channels of a pixel lie together or not at all.
  int64_t step = a.channels_last ? a.c : 1, channel = i * size % step, pixel = i * size / step;
  int64_t plane = pixel / (a.out_h * a.out_w), o = pixel % a.out_w, y = pixel / a.out_w % a.out_h;
  const T* x = static_cast<const T*>(a.x) + plane * a.h * a.w * step + channel;
  int64_t start_y = y * a.down - a.pad_y, start_x = o * a.down - a.pad_x;  // in the stuffed signal
  int64_t first_y = start_y > 0 ? (start_y + a.up - 1) / a.up : 0;
  int64_t first_x = start_x > 0 ? (start_x + a.up - 1) / a.up : 0;
  float sums[size] = {};
  for (int64_t row = first_y; row < a.h && row * a.up - start_y < a.taps_h; ++row) {
    int64_t tap_y = row * a.up - start_y;
    if (!a.reversed) tap_y = a.taps_h - 1 - tap_y;
    float across[size] = {};
    for (int64_t col = first_x; col < a.w && col * a.up - start_x < a.taps_w; ++col) {
      int64_t tap_x = col * a.up - start_x;
      if (!a.reversed) tap_x = a.taps_w - 1 - tap_x;
      float tap = a.separable ? a.taps[tap_x] : a.taps[tap_y * a.taps_w + tap_x], v[size];
      load_floats<size>(x + (row * a.w + col) * step, v);
#pragma unroll
      for (int j = 0; j < size; ++j) across[j] += tap * v[j];
    }
    float tap = a.separable ? a.taps[tap_y] : 1.0f;
#pragma unroll
    for (int j = 0; j < size; ++j) sums[j] += tap * across[j];
  }
  store_floats<size>(static_cast<T*>(a.out) + i * size, sums);
}

template <typename T, int size, typename Index>
cudaError_t by_two(const Upfirdn2dArgs& a, bool up, void* stream) {
  void (*kernel)(Upfirdn2dArgs) = nullptr;
  int64_t threads = a.n * a.c / (a.channels_last ? size : 1);
  if (a.channels_last) {
    kernel = up ? up_pixels_kernel<T, size, Index> : down_pixels_kernel<T, size, Index>;
    threads *= up ? a.h * a.w : a.out_h * ((a.out_w + 1) / 2);
  } else {
    kernel = up ? up_rows_kernel<T, size, Index> : down_rows_kernel<T, size, Index>;
    threads *= up ? a.h * (a.w / size) : (a.out_h + 1) / 2 * (a.out_w / size);
  }
  return launch_kernel(kernel, unsigned((threads + kThreads - 1) / kThreads), kThreads, 0, stream,
                       1, a);
}

template <typename T>
cudaError_t run(const Upfirdn2dArgs& a, void* stream) {
  constexpr int kSize = Pack<T>::kSize;
  const int64_t in = a.n * a.c * a.h * a.w, out = a.n * a.c * a.out_h * a.out_w;
  const bool aligned = can_pack<T>(a.x) && can_pack<T>(a.out);
  const bool four = a.separable && a.taps_w == kTaps;
  const bool up = four && a.up == 2 && a.down == 1 && a.pad_x == 2 && a.pad_y == 2 &&
                  a.out_h == 2 * a.h && a.out_w == 2 * a.w;
  const bool down = four && a.up == 1 && a.down == 2 && a.pad_x == 1 && a.pad_y == 1 &&
                    a.h == 2 * a.out_h && a.w == 2 * a.out_w;
  const int64_t vectored = a.channels_last ? a.c : up ? a.w : a.out_w;
  if ((up || down) && aligned && vectored % kSize == 0) {
    // Below this no index, rounded up to whole blocks, leaves an int.
    const bool small = (in > out ? in : out) <= INT_MAX - 8 * kThreads * kSize;
    return small ? by_two<T, kSize, int>(a, up, stream) : by_two<T, kSize, int64_t>(a, up, stream);
  }
  const bool packed = a.channels_last && aligned && a.c % kSize == 0;
  const int64_t threads = packed ? out / kSize : out;
  auto kernel = packed ? any_kernel<T, kSize> : any_kernel<T, 1>;
  return launch_kernel(kernel, unsigned((threads + kThreads - 1) / kThreads), kThreads, 0, stream,
                       1, a);
}

}  // namespace

int upfirdn2d_cuda(const Upfirdn2dArgs& a, void* stream) {
  if (a.n * a.c * a.out_h * a.out_w == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  visit(a.dtype, [&](auto* type) {
    using T = typename DeviceType<std::remove_pointer_t<decltype(type)>>::type;
    error = run<T>(a, stream);
  });
  return error;
}

}  // namespace lddgan
