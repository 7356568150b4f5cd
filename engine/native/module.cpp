#include "module.hpp"

#include "arrival/crc32_fold.hpp"

#ifdef __clang__
#define HEADRACE_COMPILER "clang " __clang_version__
#else
#define HEADRACE_COMPILER "gcc " __VERSION__
#endif

namespace {

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "engine.native._core", "Compiled code of the engine; see engine/native/__init__.py.", -1,
    nullptr, nullptr, nullptr, nullptr, nullptr,
};

// What this build is: the fingerprint of its sources (engine/native/sources.py), its compiler, and how it computes CRC-32 here.
bool add_build(PyObject *module) {
    return PyModule_AddStringConstant(module, "SOURCES", HEADRACE_SOURCES) == 0 &&
           PyModule_AddStringConstant(module, "COMPILER", HEADRACE_COMPILER) == 0 &&
           PyModule_AddStringConstant(module, "CRC32", headrace::can_fold() ? "carry-less products" : "tables") == 0;
}

bool add_all(PyObject *module) {
#ifdef HEADRACE_SANITIZE
    if (!headrace::add_mistakes(module)) return false;
#endif
    using namespace headrace;
    return add_build(module) && add_arrival(module) && add_reader(module) && add_load(module) && add_layer(module) &&
           add_pool(module) && add_staging(module) && add_device_copy(module) && add_packing(module) &&
           add_products(module);
}

}  // namespace

PyMODINIT_FUNC PyInit__core() {
    PyObject *module = PyModule_Create(&definition);
    if (module != nullptr && !add_all(module)) {
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
