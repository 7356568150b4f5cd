// What the files that bind layers and pools to Python share.
#pragma once
#include <algorithm>
#include <memory>

#include "pool/pool.hpp"
#include "reading/python_reader.hpp"

namespace headrace {

struct PythonLayer {
    std::unique_ptr<Layer> layer;
    View slot_of, warmth, uses, counts;
    std::vector<std::int32_t> ids, distinct;
    bool busy = false;  // protected by the interpreter lock
};

// The use of a layer by one call. Its pools share its arrays, and calls release the interpreter lock: false, with an
// exception set, if another thread is in a call.
class Use {
  public:
    explicit Use(PythonLayer &layer) : layer_(layer), alone_(!layer.busy) {
        layer_.busy = true;
        if (!alone_) PyErr_SetString(PyExc_RuntimeError, "another thread uses the experts of this layer");
    }
    ~Use() {
        if (alone_) layer_.busy = false;
    }
    Use(const Use &) = delete;
    Use &operator=(const Use &) = delete;
    explicit operator bool() const { return alone_; }

  private:
    PythonLayer &layer_;
    bool alone_;
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
// Whether the sources that are streams of codes fit what is made. False with an exception set.
bool streams_fit(const Recipe &recipe, bool dry);

// The type `Layer`, after add_layer.
PyTypeObject *layer_python_type();

// A memoryview of staging memory, which is given back to the reader when the view ends.
PyObject *staging_view(Buffer memory, PyObject *reader);

}  // namespace headrace
