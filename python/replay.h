// The functions of replay.cpp, for module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace lddgan {
void add_replay(pybind11::module_& module);
}
