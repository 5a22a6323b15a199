#include "lddgan/seeded_normal.h"

#include <cstdlib>

#include "lddgan/normal.h"

namespace lddgan::LDDGAN_ISA {

namespace {

// The elements from 4 * `first` on, at least `count` and at most kNormals - 1 more.
void fill_run(const PhiloxStream& s, uint32_t first, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kNormals) {
    Vec v[4];
    normals(s, first + uint32_t(i / 4), v);
    for (int k = 0; k < 4; ++k) store(out + i + k * kWidth, v[k]);
  }
}

struct LaneOrder {
  static constexpr int at(int i) { return int(lane_counter(i)); }
};

// Lanes of output vector kPart of interleaved three: first of channels 0 and 1, then with 2.
template <int kPart, bool kThird>
struct OfThree {
  static constexpr int at(int i) {
    int position = kPart * kWidth + i, pixel = position / 3, channel = position % 3;
    if (!kThird) return channel == 1 ? kWidth + pixel : pixel;
    return channel == 2 ? kWidth + pixel : i;
  }
};

template <int kPart>
LDDGAN_INLINE Vec of_three(Vec a, Vec b, Vec c) {
  constexpr auto all = std::make_integer_sequence<int, kWidth>();
  return shuffle<OfThree<kPart, true>>(shuffle<OfThree<kPart, false>>(a, b, all), c, all);
}

void interleave3(const float* a, const float* b, const float* c, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kWidth, out += 3 * kWidth) {
    Vec x = load(a + i), y = load(b + i), z = load(c + i);
    store(out, of_three<0>(x, y, z));
    store(out + kWidth, of_three<1>(x, y, z));
    store(out + 2 * kWidth, of_three<2>(x, y, z));
  }
}

void interleave4(const float* const (&runs)[4], int64_t count, float* out) {
  constexpr auto all = std::make_integer_sequence<int, kWidth>();
  for (int64_t i = 0; i < count; i += kWidth, out += 4 * kWidth) {
    Vec v[4];
    for (int k = 0; k < 4; ++k) {
      Vec x = load(runs[k] + i);
      v[k] = shuffle<LaneOrder>(x, x, all);
    }
    transpose_blocks(v);
    for (int k = 0; k < 4; ++k) store(out + k * kWidth, v[k]);
  }
}

template <typename T>
void copy(const float* noise, T* out, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(out + i, load(noise + i));
  if (i < count) store_tail(out + i, load(noise + i), int(count - i));
}

int64_t chunk_pixels(const Batch& batch) {
  int64_t pixels = 2048 / batch.channels / kNormals * kNormals;
  return pixels < kNormals ? kNormals : pixels;
}

float* allocate(int64_t count) {
  return static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64));
}

}  // namespace

int64_t noise_chunk(const Batch& batch) {
  return batch.channels_last ? chunk_pixels(batch) * batch.channels : 2048;
}

NoiseBuffer::NoiseBuffer(const Batch& batch, int slots) : batch_(batch) {
  slot_ = noise_chunk(batch) + kNormals;
  noise_ = allocate(slot_ * slots);
  if (batch.channels_last) {
    // A run may start up to three elements early, and is a whole number of kNormals.
    run_ = chunk_pixels(batch) + kNormals;
    runs_ = allocate(run_ * batch.channels + kNormals);
  }
}

NoiseBuffer::~NoiseBuffer() {
  std::free(noise_);
  std::free(runs_);
}

const float* NoiseBuffer::fill(int slot, const PhiloxStream& s, int64_t begin, int64_t end) {
  float* noise = noise_ + slot * slot_;
  if (batch_.channels_last) {
    fill_pixel_major(s, begin, end, noise);
  } else {
    fill_run(s, uint32_t(begin / 4), end - begin, noise);
  }
  return noise;
}

void NoiseBuffer::fill_pixel_major(const PhiloxStream& s, int64_t begin, int64_t end,
                                   float* noise) {
  int64_t channels = batch_.channels, pixel = begin / channels, count = (end - begin) / channels;
  auto run = [&](int64_t channel) {
    return runs_ + channel * run_ + (channel * batch_.pixels + pixel) % 4;
  };
  for (int64_t c = 0; c < channels; ++c) {
    int64_t element = c * batch_.pixels + pixel;
    fill_run(s, uint32_t(element / 4), count + element % 4, runs_ + c * run_);
  }
  if (channels == 3) {
    interleave3(run(0), run(1), run(2), count, noise);
  } else if (channels == 4) {
    interleave4({run(0), run(1), run(2), run(3)}, count, noise);
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      const float* from = run(c);
      for (int64_t i = 0; i < count; ++i) noise[i * channels + c] = from[i];
    }
  }
}

void seeded_normal(const SeededNormalArgs& a) {
  int64_t size = a.batch.channels * a.batch.pixels;
  visit(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_chunk(a.batch, 1, [&](NoiseBuffer& buffer, int64_t n, int64_t begin, int64_t end) {
      const float* noise = buffer.fill(0, PhiloxStream(a.seeds[n], a.stream, a.step), begin, end);
      copy(noise, static_cast<T*>(a.out) + n * size + begin, end - begin);
    });
  });
}

}  // namespace lddgan::LDDGAN_ISA
