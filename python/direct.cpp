// Calls for plain CPU tensors that fit as they are: no argument parser, no checks in Python.
//
// Each function returns None where anything is out of the ordinary (another device, dtype or
// layout, a subclass, a wrong shape), and the op in lddgan_kernels/ops goes the long way, which
// knows how to copy, to refuse and to choose. The operators are called through the dispatcher as
// ever.
#include "direct.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "norm_common.h"

namespace lddgan {
namespace {

const at::Tensor* tensor(PyObject* object) {
  return THPVariable_CheckExact(object) ? &THPVariable_Unpack(object) : nullptr;
}

// A dense image of a dtype that the kernels have.
const at::Tensor* image(PyObject* object) {
  const at::Tensor* x = tensor(object);
  if (!x || !x->is_cpu() || x->dim() != 4 || !same_layout(*x, *x)) return nullptr;
  auto dtype = x->scalar_type();
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf ? x : nullptr;
}

// An image of x's shape, dtype and layout.
const at::Tensor* image_like(PyObject* object, const at::Tensor& x) {
  const at::Tensor* y = tensor(object);
  return y && y->is_cpu() && y->scalar_type() == x.scalar_type() && y->sizes() == x.sizes() &&
                 y->strides() == x.strides()
             ? y
             : nullptr;
}

// A dense row of `count` numbers, or of any count where that is negative.
const at::Tensor* row(PyObject* object, at::ScalarType dtype, int64_t count) {
  const at::Tensor* x = tensor(object);
  return x && x->is_cpu() && x->scalar_type() == dtype && x->dim() == 1 && x->is_contiguous() &&
                 (count < 0 || x->size(0) == count)
             ? x
             : nullptr;
}

// A counter word; -1 where it is none.
int64_t word(PyObject* object) {
  if (!PyLong_CheckExact(object)) return -1;
  int overflow = 0;
  int64_t value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow || value < 0 || value > UINT32_MAX ? -1 : value;
}

// (x0, x_next, t, coef1, coef2, log_variance, seeds, noise, stream, step)
PyObject* posterior_sample(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  static auto op =
      find_op<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const at::Tensor&, const at::Tensor&, const Optional&, const Optional&,
                         int64_t, int64_t)>("lddgan::posterior_sample");
  const at::Tensor* x0 = count == 10 ? image(args[0]) : nullptr;
  if (!x0) Py_RETURN_NONE;
  const at::Tensor* x_next = image_like(args[1], *x0);
  const at::Tensor* t = row(args[2], at::kLong, x0->size(0));
  const at::Tensor* tables[3];
  for (int i = 0; i < 3; ++i) tables[i] = row(args[3 + i], at::kFloat, -1);
  const at::Tensor* seeds = row(args[6], at::kLong, x0->size(0));
  const at::Tensor* noise = image_like(args[7], *x0);
  int64_t stream = word(args[8]), step = word(args[9]);
  if (!x_next || !t || !tables[0] || !tables[1] || !tables[2] || stream < 0 || step < 0 ||
      (seeds ? args[7] != Py_None : !noise || args[6] != Py_None)) {
    Py_RETURN_NONE;
  }
  at::Tensor out;
  {
    pybind11::gil_scoped_release release;
    out = op.call(*x0, *x_next, *t, *tables[0], *tables[1], *tables[2],
                  seeds ? Optional(*seeds) : std::nullopt, noise ? Optional(*noise) : std::nullopt,
                  stream, step);
  }
  return THPVariable_Wrap(std::move(out));
  END_HANDLE_TH_ERRORS
}

// (x0, t, a_s, sigmas, a_s_cum, sigmas_cum, seeds, stream_t, stream_next, step)
PyObject* diffuse_pair(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  using Pair = std::tuple<at::Tensor, at::Tensor>;
  static auto op =
      find_op<Pair(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const at::Tensor&, const at::Tensor&, const Optional&, const Optional&,
                   const Optional&, int64_t, int64_t, int64_t)>("lddgan::diffuse_pair");
  const at::Tensor* x0 = count == 10 ? image(args[0]) : nullptr;
  if (!x0 || wants_gradient(*x0)) Py_RETURN_NONE;
  const at::Tensor* t = row(args[1], at::kLong, x0->size(0));
  const at::Tensor* tables[4];
  for (int i = 0; i < 4; ++i) tables[i] = row(args[2 + i], at::kFloat, -1);
  const at::Tensor* seeds = row(args[6], at::kLong, x0->size(0));
  int64_t stream_t = word(args[7]), stream_next = word(args[8]), step = word(args[9]);
  if (!t || !tables[0] || !tables[1] || !tables[2] || !tables[3] || !seeds || stream_t < 0 ||
      stream_next < 0 || step < 0) {
    Py_RETURN_NONE;
  }
  Pair out;
  {
    pybind11::gil_scoped_release release;
    out = op.call(*x0, *t, *tables[0], *tables[1], *tables[2], *tables[3], *seeds, std::nullopt,
                  std::nullopt, stream_t, stream_next, step);
  }
  PyObject* first = THPVariable_Wrap(std::move(std::get<0>(out)));
  PyObject* second = THPVariable_Wrap(std::move(std::get<1>(out)));
  PyObject* pair = PyTuple_New(2);
  PyTuple_SET_ITEM(pair, 0, first);
  PyTuple_SET_ITEM(pair, 1, second);
  return pair;
  END_HANDLE_TH_ERRORS
}

// (x, taps, up, down, pad): pad of 2 or 4 ints
PyObject* upfirdn2d(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  static auto op = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t,
                                      c10::SymIntArrayRef, bool)>("lddgan::upfirdn2d");
  const at::Tensor* x = count == 5 ? image(args[0]) : nullptr;
  const at::Tensor* taps = x ? row(args[1], at::kFloat, -1) : nullptr;
  if (!taps || taps->requires_grad() || taps->numel() == 0 || !PyTuple_CheckExact(args[4])) {
    Py_RETURN_NONE;
  }
  const Py_ssize_t sides = PyTuple_GET_SIZE(args[4]);
  const int64_t up = word(args[2]), down = word(args[3]);
  if (up < 1 || down < 1 || (sides != 2 && sides != 4)) Py_RETURN_NONE;
  int64_t values[4];
  c10::SymInt pad[4];
  for (int i = 0; i < 4; ++i) {
    values[i] = word(PyTuple_GET_ITEM(args[4], i % sides));
    if (values[i] < 0) Py_RETURN_NONE;
    pad[i] = values[i];
  }
  if (x->size(2) * up + values[2] + values[3] < taps->numel() ||
      x->size(3) * up + values[0] + values[1] < taps->numel()) {
    Py_RETURN_NONE;
  }
  at::Tensor out;
  {
    pybind11::gil_scoped_release release;
    out = op.call(*x, *taps, up, down, pad, false);
  }
  return THPVariable_Wrap(std::move(out));
  END_HANDLE_TH_ERRORS
}

// Rows of x's dtype or float32, one a sample; where `one` is set, one for all too.
const at::Tensor* rows(PyObject* object, const at::Tensor& x, int64_t channels, bool one) {
  const at::Tensor* r = tensor(object);
  return r && r->is_cpu() &&
                 (r->scalar_type() == x.scalar_type() || r->scalar_type() == at::kFloat) &&
                 ((one && r->dim() == 1) || (r->dim() == 2 && r->size(0) == x.size(0))) &&
                 r->size(-1) == channels
             ? r
             : nullptr;
}

// (x, scale, shift, num_groups, eps, silu, bias)
PyObject* ada_group_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  static auto op = find_op<NormOperator<at::Tensor>>("lddgan::ada_group_norm");
  const at::Tensor* x = count == 7 ? image(args[0]) : nullptr;
  if (!x) Py_RETURN_NONE;
  const int64_t channels = x->size(1), groups = word(args[3]);
  const at::Tensor* scale = rows(args[1], *x, channels, true);
  const at::Tensor* shift = rows(args[2], *x, channels, true);
  const at::Tensor* bias = rows(args[6], *x, channels, false);
  if (!scale || !shift || (!bias && args[6] != Py_None) || groups < 1 || channels % groups != 0 ||
      !PyFloat_CheckExact(args[4])) {
    Py_RETURN_NONE;
  }
  const double eps = PyFloat_AS_DOUBLE(args[4]);
  at::Tensor out;
  {
    pybind11::gil_scoped_release release;
    out = call(op, {*x,
                    kNone,
                    bias ? Optional(*bias) : std::nullopt,
                    *scale,
                    *shift,
                    groups,
                    eps,
                    args[5] == Py_True,
                    {},
                    kNone});
  }
  return THPVariable_Wrap(std::move(out));
  END_HANDLE_TH_ERRORS
}

template <auto function>
PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
          METH_FASTCALL, nullptr};
}

}  // namespace

void add_direct_calls(PyObject* module) {
  static PyMethodDef methods[] = {
      method<posterior_sample>("posterior_sample"),
      method<diffuse_pair>("diffuse_pair"),
      method<upfirdn2d>("upfirdn2d"),
      method<ada_group_norm>("ada_group_norm"),
      {nullptr, nullptr, 0, nullptr},
  };
  PyModule_AddFunctions(module, methods);
}

}  // namespace lddgan
