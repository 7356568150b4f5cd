// What the files that bind layers and pools to Python share.
#pragma once
#include <memory>

#include "pool/pool.hpp"
#include "reading/python_reader.hpp"

namespace headrace {

struct PythonLayer {
    std::unique_ptr<Layer> layer;
    View slot_of, warmth, uses, counts;
    std::vector<std::int32_t> ids, distinct;
};

struct PythonPool {
    std::unique_ptr<Pool> pool;
    PyObject *reader = nullptr;
    PyObject *layer = nullptr;
    std::vector<View> views;
    std::vector<std::int32_t> ids, keep, distinct;
};

// Adds one tuple of `sources` or of `made` (engine/cache/slots.py) to a recipe. False with an exception set.
bool add_source(PyObject *tuple, std::int32_t slots, const Reader &reader, std::int32_t experts, PythonPool &made,
                Recipe &recipe);
bool add_made(PyObject *tuple, std::int32_t slots, PythonPool &made, Recipe &recipe);

// The type `Layer`, after add_layer.
PyTypeObject *layer_python_type();

// A function with the calling convention METH_FASTCALL, in a table of methods.
template <typename Function>
PyCFunction fast(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(function));
}

}  // namespace headrace
