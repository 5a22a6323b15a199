// What the bindings of the norms share: from tensors to AdaGroupNormArgs.
#pragma once

#include "lddgan/ada_group_norm.h"
#include "torch_common.h"

namespace lddgan {

using Optional = std::optional<at::Tensor>;

// A norm's operator, to be called by `call`.
template <typename Result>
using NormOperator = Result(const at::Tensor& x, const Optional& x2, const Optional& bias,
                            const at::Tensor& scale, const at::Tensor& shift, int64_t num_groups,
                            double eps, bool silu, at::OptionalIntArrayRef plan,
                            const Optional& moments);

// Its arguments as one thing, which lives no longer than they do.
struct NormCall {
  const at::Tensor& x;
  const Optional& x2;
  const Optional& bias;
  const at::Tensor& scale;
  const at::Tensor& shift;
  int64_t num_groups;
  double eps;
  bool silu;
  at::OptionalIntArrayRef plan;  // none on CPUs (an empty list is lost by AOTInductor)
  const Optional& moments;
};

template <typename Operator>
auto call(const Operator& op, const NormCall& n) {
  return op.call(n.x, n.x2, n.bias, n.scale, n.shift, n.num_groups, n.eps, n.silu, n.plan,
                 n.moments);
}

inline const Optional kNone{};

inline int64_t rows_in(const Optional& x) { return x ? x->size(1) : 0; }

// (N, C) with any row stride, or (C,) as one row for all samples.
inline ChannelRows rows_of(const char* name, const at::Tensor& rows, int64_t samples,
                           int64_t channels) {
  bool one = rows.dim() == 1;
  TORCH_CHECK((one || (rows.dim() == 2 && rows.size(0) == samples)) && rows.size(-1) == channels &&
                  (rows.numel() <= 1 || channels <= 1 || rows.stride(-1) == 1),
              "ada_group_norm: ", name, " must be of shape (", samples, ", ", channels, ") or (",
              channels, ",) with adjacent channels, got ", rows.sizes());
  return {rows.const_data_ptr(), one ? 0 : rows.stride(0), dtype_of(rows)};
}

// Rows may be any slice of a matrix; only strides within a row need a copy.
inline at::Tensor adjacent(const at::Tensor& rows) {
  return rows.size(-1) <= 1 || rows.stride(-1) == 1 ? rows : rows.contiguous();
}

inline Optional adjacent(const Optional& rows) { return rows ? Optional(adjacent(*rows)) : rows; }

// What a kernel takes, and the rows that it points into.
struct NormArgs {
  at::Tensor scale, shift;
  Optional bias;
  AdaGroupNormArgs kernel;
};

// Layouts are ops/ada_group_norm.py's business; this only keeps a wrong call from reading astray.
inline NormArgs norm_args(const NormCall& n) {
  const at::Tensor& x = n.x;
  TORCH_CHECK(x.dim() == 4 && same_layout(x, x), "ada_group_norm: x must be dense and 4-D, got ",
              x.sizes());
  NormArgs args{adjacent(n.scale), adjacent(n.shift), adjacent(n.bias), {}};
  AdaGroupNormArgs& a = args.kernel;
  a.samples = x.size(0);
  a.channels1 = x.size(1);
  a.channels2 = rows_in(n.x2);
  a.pixels = x.size(2) * x.size(3);
  a.groups = n.num_groups;
  int64_t channels = a.channels1 + a.channels2;
  TORCH_CHECK(a.groups > 0 && channels % a.groups == 0,
              "ada_group_norm: num_groups must be a divisor of the ", channels, " channels, got ",
              a.groups);
  if (n.x2) {
    TORCH_CHECK(same_layout(x, *n.x2) && n.x2->scalar_type() == x.scalar_type() &&
                    n.x2->numel() == a.samples * a.channels2 * a.pixels,
                "ada_group_norm: x2 must match x's layout and dtype, got ", n.x2->sizes());
    a.x2 = n.x2->const_data_ptr();
  }
  if (args.bias) a.bias = rows_of("bias", *args.bias, a.samples, a.channels1);
  a.x = x.const_data_ptr();
  a.scale = rows_of("scale", args.scale, a.samples, channels);
  a.shift = rows_of("shift", args.shift, a.samples, channels);
  a.eps = float(n.eps);
  a.dtype = dtype_of(x);
  a.channels_last = !x.is_contiguous();
  a.silu = n.silu;
  return args;
}

inline void attach_statistics(AdaGroupNormArgs& a, float* statistics) {
  a.mean = statistics;
  a.rstd = statistics + a.samples * a.groups;
}

}  // namespace lddgan
