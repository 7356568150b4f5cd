#include <cstring>

#include "arrival.hpp"
#include "module.hpp"

namespace headrace {
namespace {

// A buffer of a Python object, given back when it goes out of scope.
struct Buffer {
    Py_buffer view{};
    ~Buffer() {
        if (view.obj != nullptr) PyBuffer_Release(&view);
    }
    std::size_t size() const { return static_cast<std::size_t>(view.len); }
    template <class T = std::uint8_t>
    T *as() const {
        return static_cast<T *>(view.buf);
    }
};


PyObject *py_crc32(PyObject *, PyObject *args) {
    Buffer data;
    unsigned int value = 0;
    if (!PyArg_ParseTuple(args, "y*|I", &data.view, &value)) return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    value = crc32(data.as(), data.size(), value);
    Py_END_ALLOW_THREADS;
    return PyLong_FromUnsignedLong(value);
}

PyObject *py_widen(PyObject *, PyObject *args) {
    Buffer from, to;
    const char *dtype = nullptr;
    if (!PyArg_ParseTuple(args, "y*w*s", &from.view, &to.view, &dtype)) return nullptr;
    const bool half = std::strcmp(dtype, "F16") == 0;
    if (!half && std::strcmp(dtype, "BF16") != 0) return PyErr_Format(PyExc_ValueError, "dtype is BF16 or F16, not %s", dtype);
    if (from.size() % 2 != 0 || to.size() != 2 * from.size())
        return PyErr_Format(PyExc_ValueError, "%zu bytes of %s do not widen to %zu bytes", from.size(), dtype, to.size());
    Py_BEGIN_ALLOW_THREADS;
    (half ? widen_f16 : widen_bf16)(from.as<const std::uint16_t>(), to.as<float>(), from.size() / 2);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *py_join_planes(PyObject *, PyObject *args) {
    PyObject *given = nullptr;
    int bits = 0;
    Buffer out, streams[MOST_PLANES];
    if (!PyArg_ParseTuple(args, "Oiw*", &given, &bits, &out.view)) return nullptr;
    const Py_ssize_t planes = PySequence_Size(given);
    if (planes < 0) return nullptr;
    if (planes > MOST_PLANES) return PyErr_Format(PyExc_ValueError, "%zd streams; at most %d join", planes, MOST_PLANES);
    const std::uint8_t *starts[MOST_PLANES];
    std::size_t sizes[MOST_PLANES], total = 0;
    for (int i = 0; i < planes; ++i) {
        PyObject *stream = PySequence_GetItem(given, i);
        if (stream == nullptr) return nullptr;
        const int failed = PyObject_GetBuffer(stream, &streams[i].view, PyBUF_SIMPLE);
        Py_DECREF(stream);
        if (failed != 0) return nullptr;
        starts[i] = streams[i].as();
        sizes[i] = streams[i].size();
        total += sizes[i];
    }
    if (!planes_fit(sizes, static_cast<int>(planes), bits))
        return PyErr_Format(PyExc_ValueError, "these %zd streams, %zu bytes together, do not join into codes of %d bits", planes,
                            total, bits);
    if (out.size() != total) return PyErr_Format(PyExc_ValueError, "out has %zu bytes, the streams %zu", out.size(), total);
    Py_BEGIN_ALLOW_THREADS;
    join_planes(starts, sizes, static_cast<int>(planes), bits, out.as());
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *py_halve_planes(PyObject *, PyObject *args) {
    Buffer stream, upper, lower;
    int bits = 0;
    if (!PyArg_ParseTuple(args, "y*iw*w*", &stream.view, &bits, &upper.view, &lower.view)) return nullptr;
    const std::size_t size = stream.size();
    const std::size_t sizes[2] = {size / 2, size - size / 2};
    if (!planes_fit(sizes, 2, bits))
        return PyErr_Format(PyExc_ValueError, "%zu bytes are not whole pairs of words of %d-bit codes", size, bits);
    if (upper.size() != size / 2 || lower.size() != size / 2)
        return PyErr_Format(PyExc_ValueError, "the halves have %zu and %zu bytes; %zu bytes split into two of %zu", upper.size(),
                            lower.size(), size, size / 2);
    Py_BEGIN_ALLOW_THREADS;
    halve_planes(stream.as(), size, bits, upper.as(), lower.as());
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *py_derive_biases(PyObject *, PyObject *args) {
    Buffer scales, biases;
    double zero = 0;
    const char *dtype = nullptr;
    if (!PyArg_ParseTuple(args, "y*dw*s", &scales.view, &zero, &biases.view, &dtype)) return nullptr;
    const bool wide = std::strcmp(dtype, "F32") == 0, half = std::strcmp(dtype, "F16") == 0;
    if (!wide && !half && std::strcmp(dtype, "BF16") != 0)
        return PyErr_Format(PyExc_ValueError, "dtype is F32, F16 or BF16, not %s", dtype);
    const std::size_t size = scales.size(), count = size / (wide ? 4 : 2);
    if (size % (wide ? 4 : 2) != 0 || biases.size() != size)
        return PyErr_Format(PyExc_ValueError, "%zu bytes of %s scales do not give %zu bytes of biases", size, dtype,
                            biases.size());
    Py_BEGIN_ALLOW_THREADS;
    if (wide) {
        derive_biases_f32(scales.as<const float>(), zero, biases.as<float>(), count);
    } else {
        (half ? derive_biases_f16 : derive_biases_bf16)(scales.as<const std::uint16_t>(), zero, biases.as<std::uint16_t>(),
                                                        count);
    }
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyMethodDef FUNCTIONS[] = {
    {"crc32", py_crc32, METH_VARARGS, "crc32(data: buffer, crc: int = 0) -> int: the CRC-32 as zlib computes it."},
    {"widen", py_widen, METH_VARARGS,
     "widen(codes: buffer, out: buffer of float32, dtype: str) -> None: widen BF16 or F16 codes exactly."},
    {"join_planes", py_join_planes, METH_VARARGS,
     "join_planes(streams: sequence of buffers, bits: int, out: buffer) -> None: join bit planes, the upper bits first, into "
     "codes of `bits` bits."},
    {"halve_planes", py_halve_planes, METH_VARARGS,
     "halve_planes(stream: buffer, bits: int, upper: buffer, lower: buffer) -> None: split codes of 4, 6 or 8 bits into their "
     "halves; the inverse of join_planes."},
    {"derive_biases", py_derive_biases, METH_VARARGS,
     "derive_biases(scales: buffer, zero: float, biases: buffer, dtype: str) -> None: minus `zero`, the code of a zero weight, "
     "times the scales; dtype is F32, F16 or BF16."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_arrival(PyObject *module) { return PyModule_AddFunctions(module, FUNCTIONS) == 0; }

}  // namespace headrace
