// Python: helpers of the files that bind C++ to Python, on the stable ABI.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace headrace {

// A buffer of another object, held until this one ends.
class View {
  public:
    View() = default;
    ~View() { release(); }
    View(const View &) = delete;
    View &operator=(const View &) = delete;
    View(View &&other) noexcept : view_(other.view_), held_(other.held_) { other.held_ = false; }
    // Contiguous memory of items of `item` bytes (0: any). False with an exception set.
    bool take(PyObject *object, bool writable, Py_ssize_t item, const char *what) {
        release();
        const int flags = PyBUF_ANY_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object, &view_, flags) != 0) return false;
        held_ = true;
        if (item != 0 && view_.itemsize != item) {
            PyErr_Format(PyExc_TypeError, "%s: items of %zd bytes, not %zd", what, view_.itemsize, item);
            return false;
        }
        return true;
    }
    template <typename T>
    T *data() const {
        return static_cast<T *>(view_.buf);
    }
    Py_ssize_t bytes() const { return view_.len; }
    Py_ssize_t items() const { return view_.len / view_.itemsize; }
    const char *format() const { return view_.format == nullptr ? "B" : view_.format; }
    Py_ssize_t itemsize() const { return view_.itemsize; }

  private:
    void release() {
        if (held_) PyBuffer_Release(&view_);
        held_ = false;
    }
    Py_buffer view_{};
    bool held_ = false;
};

// Sets `ids` to the expert numbers in a buffer of integers of 4 or 8 bytes, -1 .. `experts` - 1. False with an exception set.
inline bool read_ids(PyObject *object, std::int32_t experts, std::vector<std::int32_t> &ids) {
    View view;
    if (!view.take(object, false, 0, "expert numbers")) return false;
    const char kind = view.format()[std::strlen(view.format()) - 1];
    if (std::strchr("iIlLqQ", kind) == nullptr || (view.itemsize() != 4 && view.itemsize() != 8)) {
        PyErr_Format(PyExc_TypeError, "expert numbers are of type '%s', not integers of 4 or 8 bytes", view.format());
        return false;
    }
    const Py_ssize_t number = view.items();
    ids.resize(static_cast<std::size_t>(number));
    for (Py_ssize_t i = 0; i < number; ++i) {
        const std::int64_t id = view.itemsize() == 4 ? view.data<std::int32_t>()[i] : view.data<std::int64_t>()[i];
        if (id < -1 || id >= experts) {
            PyErr_Format(PyExc_ValueError, "expert %lld is outside -1 .. %d", static_cast<long long>(id), experts - 1);
            return false;
        }
        ids[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(id);
    }
    return true;
}

// An object of a heap type that owns one C++ object.
template <typename T>
struct Holder {
    PyObject_HEAD
    T *value;
};

template <typename T>
T *held(PyObject *self) {
    return reinterpret_cast<Holder<T> *>(self)->value;
}

template <typename T>
PyObject *hold(PyTypeObject *type, T *value) {
    auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
    PyObject *self = allocate(type, 0);
    if (self == nullptr) {
        delete value;
        return nullptr;
    }
    reinterpret_cast<Holder<T> *>(self)->value = value;
    return self;
}

// Frees the object of a heap type; the C++ object has been deleted.
inline void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

// Adds a type to `module` under the last part of its name; null with an exception set.
inline PyTypeObject *add_type(PyObject *module, PyType_Spec &spec) {
    PyObject *type = PyType_FromSpec(&spec);
    if (type == nullptr) return nullptr;
    const char *dot = std::strrchr(spec.name, '.');
    if (PyModule_AddObjectRef(module, dot == nullptr ? spec.name : dot + 1, type) != 0) {
        Py_DECREF(type);
        return nullptr;
    }
    return reinterpret_cast<PyTypeObject *>(type);
}

}  // namespace headrace
