// The functions of direct.cpp, for module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace lddgan {
void add_direct_calls(PyObject* module);
}
