// Module: what each source file adds to the extension `engine.native._core`. The interface is Python's stable ABI of 3.11.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace headrace {

// Each function adds the names of its source file to `module`; it returns false with a Python exception set.
bool add_arrival(PyObject *module);
bool add_reader(PyObject *module);
bool add_load(PyObject *module);
bool add_device_copy(PyObject *module);
bool add_layer(PyObject *module);
bool add_pool(PyObject *module);
bool add_staging(PyObject *module);
bool add_packing(PyObject *module);
bool add_products(PyObject *module);
#ifdef HEADRACE_SANITIZE
bool add_mistakes(PyObject *module);  // tests/engine/native/mistakes.cpp: bugs that the sanitizers must report
#endif

}  // namespace headrace
