#include "module.hpp"

namespace {

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "engine.native._core", "Compiled code of the engine; see engine/native/__init__.py.", -1,
    nullptr, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__core() {
    PyObject *module = PyModule_Create(&definition);
    if (module != nullptr && !(headrace::add_arrival(module) && headrace::add_packing(module))) {
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
