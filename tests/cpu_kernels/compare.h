// What compare.cpp and its cases share: arrays, random numbers, the error rule.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "lddgan/dtype.h"

using namespace lddgan;

// `call` of the kernel in the tested instruction set, or in the baseline.
#define BOTH(kernel, args) \
  [&](bool ours) { ours ? LDDGAN_TESTED::kernel(args) : baseline::kernel(args); }

// Elements of a storage type between guards; NaN until written.
class Array {
 public:
  Array(Dtype type, int64_t size) : dtype(type), count(size), bytes_(2 * kGuard + size * width()) {
    clear();
  }
  const Dtype dtype;
  const int64_t count;

  void* data() { return bytes_.data() + kGuard; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data());
  }
  double operator[](int64_t i) const {
    double value = 0;
    visit(dtype, [&](auto* type) {
      auto x = *type_at(type, i);
      value = double(to_float(x));
    });
    return value;
  }
  void set(int64_t i, double value) {
    switch (dtype) {
      case Dtype::kFloat32:
        as<float>()[i] = float(value);
        break;
      case Dtype::kBFloat16:
        as<BFloat16>()[i] = to_bfloat16(float(value));
        break;
      case Dtype::kFloat16:
        as<Half>()[i] = to_half(float(value));
    }
  }
  void clear() {
    for (auto& byte : bytes_) byte = 0xff;  // NaN in each type
  }
  bool is_guarded() const {
    for (int i = 0; i < kGuard; ++i) {
      if (bytes_[i] != 0xff || bytes_[bytes_.size() - 1 - i] != 0xff) return false;
    }
    return true;
  }
  double roundoff() const {
    return dtype == Dtype::kFloat32 ? 0x1p-24 : dtype == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-11;
  }

 private:
  static constexpr int kGuard = 256;
  int64_t width() const { return dtype == Dtype::kFloat32 ? 4 : 2; }
  template <typename T>
  const T* type_at(T*, int64_t i) const {
    return reinterpret_cast<const T*>(bytes_.data() + kGuard) + i;
  }
  std::vector<uint8_t> bytes_;
};

// Seeded, so that a failure comes again.
class Draw {
 public:
  explicit Draw(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t word() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state_ >> 33);
  }
  int64_t of(std::initializer_list<int64_t> choices) {
    return choices.begin()[word() % choices.size()];
  }
  bool flip() { return word() & 1; }
  Dtype dtype() { return Dtype(word() % 3); }
  double normal() {
    double total = -6;
    for (int i = 0; i < 12; ++i) total += word() / 0x1p31;
    return total;
  }
  Array array(Dtype dtype, int64_t count, double scale = 1, double offset = 0) {
    Array a(dtype, count);
    for (int64_t i = 0; i < count; ++i) a.set(i, offset + scale * normal());
    return a;
  }

 private:
  uint64_t state_;
};

struct Output {
  Array* array;
  std::vector<double> exact;
};

// Where element (n, c, p) of a batch of images lies.
struct Layout {
  int64_t channels, pixels;
  bool channels_last;
  int64_t operator()(int64_t n, int64_t c, int64_t p) const {
    return channels_last ? (n * pixels + p) * channels + c : (n * channels + c) * pixels + p;
  }
};

inline int failures = 0;

inline void fail(const std::string& what) {
  std::printf("FAILED %s\n", what.c_str());
  ++failures;
}

inline double error(const Array& out, const std::vector<double>& exact) {
  double most = 0, largest = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = std::fabs(out[int64_t(i)] - exact[i]);
    if (!(difference <= 1e30)) return INFINITY;
    most = std::fmax(most, difference);
    largest = std::fmax(largest, std::fabs(exact[i]));
  }
  return largest > 0 ? most / largest : most;
}

// One output of one problem.
struct Record {
  std::string what;  // the kernel's name, then the problem
  int output;
  Dtype dtype;
  double roundoff, ours, plain;
};
inline std::vector<Record> records;

// Runs the kernel in both sets; records the errors, and sees that nothing around outputs is
// written.
inline void check(const std::string& what, const std::function<void(bool ours)>& run,
                  std::vector<Output> outputs) {
  std::vector<double> errors[2];
  for (int ours = 0; ours < 2; ++ours) {
    for (Output& output : outputs) output.array->clear();
    run(ours);
    for (Output& output : outputs) {
      errors[ours].push_back(error(*output.array, output.exact));
      if (!output.array->is_guarded()) fail(what + ": wrote outside its output");
    }
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Array& array = *outputs[i].array;
    records.push_back({what, int(i), array.dtype, array.roundoff(), errors[1][i], errors[0][i]});
  }
}

inline std::string text(const char* name, std::initializer_list<int64_t> numbers) {
  std::string all = name;
  for (int64_t number : numbers) all += " " + std::to_string(number);
  return all;
}

// The cases: each draws `count` problems.
void convolutions(Draw& draw, int count);
void norms(Draw& draw, int count);
void elementwise(Draw& draw, int count);
void resampling(Draw& draw, int count);
void noise(Draw& draw, int count);
void codes(Draw& draw, int count);
