// Binds `DeviceCopy`, with which the doctor measures the copy engine.
#include <memory>

#include "module.hpp"
#include "python.hpp"
#include "reading/buffer.hpp"
#include "reading/device_copy.hpp"

namespace headrace {
namespace {

struct PythonDeviceCopy {
    std::unique_ptr<DeviceCopy> device;
    Buffer memory;
    Scratch scratch;
};

PyObject *copy_new(PyTypeObject *type, PyObject *args, PyObject *) {
    const char *library = nullptr;
    Py_ssize_t size = 0;
    if (!PyArg_ParseTuple(args, "sn", &library, &size)) return nullptr;
    auto made = std::make_unique<PythonDeviceCopy>();
    std::string error;
    made->device.reset(DeviceCopy::open(library, error));
    if (made->device == nullptr) {
        PyErr_Format(PyExc_OSError, "%s: %s", library, error.c_str());
        return nullptr;
    }
    made->memory = Buffer(static_cast<std::size_t>(size));
    made->scratch.data = made->memory.data();
    made->scratch.size = made->memory.size();
    const int code = made->memory.size() == 0 ? -1 : made->device->attach(made->scratch);
    if (code != 0) {
        PyErr_Format(PyExc_OSError, "%zd bytes of page-locked memory: code %d", size, code);
        return nullptr;
    }
    return hold(type, made.release());
}

void copy_dealloc(PyObject *self) {
    PythonDeviceCopy *made = held<PythonDeviceCopy>(self);
    if (made != nullptr) made->device->detach(made->scratch);
    delete made;
    free_object(self);
}

PyObject *copy_fill(PyObject *self, PyObject *value) {
    const long byte = PyLong_AsLong(value);
    if (PyErr_Occurred()) return nullptr;
    const Buffer &memory = held<PythonDeviceCopy>(self)->memory;
    std::memset(memory.data(), static_cast<int>(byte), memory.size());
    Py_RETURN_NONE;
}

PyObject *copy_call(PyObject *self, PyObject *object) {
    PythonDeviceCopy &made = *held<PythonDeviceCopy>(self);
    View into;
    if (!into.take(object, true, 0, "into")) return nullptr;
    if (static_cast<std::size_t>(into.bytes()) > made.memory.size()) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are more than the page-locked memory of %zu", into.bytes(), made.memory.size());
        return nullptr;
    }
    int code = 0;
    Py_BEGIN_ALLOW_THREADS
    code = made.device->copy(into.data<std::uint8_t>(), made.memory.data(), static_cast<std::size_t>(into.bytes()), made.scratch);
    if (code == 0) code = made.device->finish(made.scratch);
    Py_END_ALLOW_THREADS
    if (code == 0) Py_RETURN_NONE;
    PyErr_Format(PyExc_OSError, "a copy failed with code %d", code);
    return nullptr;
}

PyMethodDef METHODS[] = {
    {"fill", copy_fill, METH_O, "fill(byte): set the page-locked memory to a value."},
    {"copy", copy_call, METH_O, "copy(into): copy that many bytes from the page-locked memory to `into`, and wait."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {
    {Py_tp_doc, const_cast<char *>("DeviceCopy(library, size): the CUDA driver's copy engine and page-locked memory of a size in bytes.")},
    {Py_tp_new, reinterpret_cast<void *>(copy_new)},
    {Py_tp_dealloc, reinterpret_cast<void *>(copy_dealloc)},
    {Py_tp_methods, METHODS},
    {0, nullptr},
};

PyType_Spec SPEC = {"engine.native._core.DeviceCopy", sizeof(Holder<PythonDeviceCopy>), 0, Py_TPFLAGS_DEFAULT, SLOTS};

}  // namespace

bool add_device_copy(PyObject *module) { return add_type(module, SPEC) != nullptr; }

}  // namespace headrace
