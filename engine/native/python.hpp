// Python: helpers of the files that bind C++ to Python, on the stable ABI.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <type_traits>
#include <vector>

namespace headrace {

// `Border<function>::call` is `function` for Python's tables: a C++ exception becomes a Python one.
template <auto function>
struct Border;
template <typename Result, typename... Arguments, Result (*function)(Arguments...)>
struct Border<function> {
    static Result call(Arguments... arguments) {
        try {
            return function(arguments...);
        } catch (const std::bad_alloc &) {
            PyErr_NoMemory();
        } catch (const std::exception &error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
        if constexpr (std::is_pointer_v<Result>) return nullptr;
        else return static_cast<Result>(-1);
    }
};

// The same for a table of methods, with any calling convention.
template <auto function>
PyCFunction method() {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(Border<function>::call));
}

// Runs `work` without the interpreter lock. No destructor takes the lock again: at the interpreter's exit that ends the thread.
template <typename Work>
void unlocked(Work work) {
    PyThreadState *state = PyEval_SaveThread();
    std::exception_ptr failed;
    try {
        work();
    } catch (...) {
        failed = std::current_exception();
    }
    PyEval_RestoreThread(state);
    if (failed != nullptr) std::rethrow_exception(failed);
}

// A reference that is given back unless it is passed on.
class Ref {
  public:
    explicit Ref(PyObject *object) : object_(object) {}
    ~Ref() { Py_XDECREF(object_); }
    Ref(const Ref &) = delete;
    Ref &operator=(const Ref &) = delete;
    PyObject *get() const { return object_; }
    PyObject *release() {
        PyObject *object = object_;
        object_ = nullptr;
        return object;
    }

  private:
    PyObject *object_;
};

// Appends `item`, a new reference or null with an exception set, which is given back. False with an exception set.
inline bool append(const Ref &list, PyObject *item) {
    const Ref one(item);
    return list.get() != nullptr && item != nullptr && PyList_Append(list.get(), item) == 0;
}

constexpr const char *INTEGERS = "iIlLqQ";  // letters of the struct module

// A buffer of another object, held until this one ends.
class View {
  public:
    View() = default;
    ~View() { release(); }
    View(const View &) = delete;
    View &operator=(const View &) = delete;
    View(View &&other) noexcept : view_(other.view_), held_(other.held_) { other.held_ = false; }
    // Memory in C order of items of `item` bytes (0: any) in the machine's byte order, whose type is one of the letters
    // `kinds` (null: any). False with an exception set.
    bool take(PyObject *object, bool writable, Py_ssize_t item, const char *what, const char *kinds = nullptr) {
        release();
        const int flags = PyBUF_ANY_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object, &view_, flags) != 0) return false;
        held_ = true;
        if (view_.strides != nullptr && !PyBuffer_IsContiguous(&view_, 'C')) {  // MLX's arrays ignore the flags
            PyErr_Format(PyExc_BufferError, "%s: the memory is not contiguous", what);
            return false;
        }
        if (item != 0 && view_.itemsize != item) {
            PyErr_Format(PyExc_TypeError, "%s: items of %zd bytes, not %zd", what, view_.itemsize, item);
            return false;
        }
        const char *letter = format();
        if (*letter == '@' || *letter == '=' || *letter == '<') ++letter;
        if (kinds == nullptr || (*letter != 0 && letter[1] == 0 && std::strchr(kinds, *letter) != nullptr)) return true;
        PyErr_Format(PyExc_TypeError, "%s are of type '%s', which is not one of %s", what, format(), kinds);
        return false;
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
    if (!view.take(object, false, 0, "expert numbers", INTEGERS)) return false;
    if (view.itemsize() != 4 && view.itemsize() != 8) {
        PyErr_Format(PyExc_TypeError, "expert numbers are of %zd bytes, not 4 or 8", view.itemsize());
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
