#include "lddgan/seeded_normal.h"

#include <cstdlib>

#include "normal.h"

namespace lddgan::LDDGAN_ISA {

namespace {

// Lanes of output vector kPart of interleaved three: first of channels 0 and 1, then with 2.
template <int kPart>
LDDGAN_INLINE Vec of_three(Vec a, Vec b, Vec c) {
  Vec two = shuffle<[](int i) {
    int position = kPart * kWidth + i;
    return position / 3 + (position % 3 == 1 ? kWidth : 0);
  }>(a, b);
  return shuffle<[](int i) {
    int position = kPart * kWidth + i;
    return position % 3 == 2 ? kWidth + position / 3 : i;
  }>(two, c);
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
  for (int64_t i = 0; i < count; i += kWidth, out += 4 * kWidth) {
    Vec a = load(runs[0] + i), b = load(runs[1] + i), c = load(runs[2] + i), d = load(runs[3] + i);
    Vec even = interleave_low(a, c), odd = interleave_low(b, d);
    store(out, interleave_low(even, odd));
    store(out + kWidth, interleave_high(even, odd));
    even = interleave_high(a, c), odd = interleave_high(b, d);
    store(out + 2 * kWidth, interleave_low(even, odd));
    store(out + 3 * kWidth, interleave_high(even, odd));
  }
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
  return batch.channels_last ? chunk_pixels(batch) * batch.channels : 1024;
}

NoiseSource::NoiseSource(const Batch& batch, int streams) : batch_(batch) {
  if (!batch.channels_last) return;
  slot_ = noise_chunk(batch) + kNormals;
  noise_ = allocate(slot_ * streams);
  // A run may start up to three elements early, and is a whole number of kNormals.
  run_ = chunk_pixels(batch) + kNormals;
  runs_ = allocate(run_ * batch.channels + kNormals);
}

NoiseSource::~NoiseSource() {
  std::free(noise_);
  std::free(runs_);
}

void NoiseSource::fill_run(const PhiloxStream& s, uint32_t first, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kNormals) {
    Vec v[2 * kTogether];
    normals(s, first + uint32_t(i / 4), v);
    for (int k = 0; k < 2 * kTogether; ++k) store(out + i + k * kWidth, v[k]);
  }
}

void NoiseSource::fill(int k, const PhiloxStream& s, int64_t begin, int64_t end) {
  int64_t channels = batch_.channels, pixel = begin / channels, count = (end - begin) / channels;
  float* noise = noise_ + k * slot_;
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
    for_each_chunk(a.batch, 1, [&](NoiseSource& source, int64_t n, int64_t begin, int64_t end) {
      T* out = static_cast<T*>(a.out) + n * size + begin;
      PhiloxStream streams[1] = {{a.seeds[n], a.stream, a.step}};
      source.each(streams, begin, end, [&](int64_t i, const Vec(&noise)[1], auto count) {
        store(out + i, noise[0], count);
      });
    });
  });
}

}  // namespace lddgan::LDDGAN_ISA
