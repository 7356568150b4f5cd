#include <memory>
#include <new>

#include "module.hpp"
#include "python.hpp"
#include "packing/projection.hpp"

namespace headrace {
namespace {

// Takes a buffer of exactly `size` bytes; None is an empty one if `optional`. False with an exception set.
bool take(View &view, PyObject *object, std::int64_t size, const char *name, bool writable, bool optional, std::uint8_t *&data) {
    data = nullptr;
    if (optional && Py_IsNone(object)) return true;
    if (!view.take(object, writable, 0, name)) return false;
    data = view.data<std::uint8_t>();
    if (view.bytes() == size) return true;
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes, not %lld", name, view.bytes(), static_cast<long long>(size));
    return false;
}

struct SourceBuffers {
    View weights, scales, biases;
};

struct PartBuffers {
    View scales, biases, codes;
};

bool wrong(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return false;
}

bool parse_float(const char *name, Float &found) {
    for (const auto &[known, type] : {std::pair("F32", Float::f32), std::pair("F16", Float::f16), std::pair("BF16", Float::bf16)}) {
        if (std::strcmp(name, known) == 0) {
            found = type;
            return true;
        }
    }
    return wrong("a type must be F32, F16 or BF16");
}

bool parse_format(const char *name, Format &found) {
    for (const auto &[known, format] : {
             std::pair("affine", Format::affine), std::pair("float", Format::floats), std::pair("fp8", Format::fp8),
             std::pair("mxfp4", Format::mxfp4), std::pair("mxfp8", Format::mxfp8), std::pair("nvfp4", Format::nvfp4)}) {
        if (std::strcmp(name, known) == 0) {
            found = format;
            return true;
        }
    }
    return wrong("a format must be affine, float, fp8, mxfp4, mxfp8 or nvfp4");
}

// Bytes of the source's scales; 0 if it has none.
std::int64_t scale_bytes(const Source &source) {
    const std::int64_t weights = source.rows * source.columns;
    switch (source.format) {
        case Format::affine: return weights / source.group_size * bytes_of(source.type);
        case Format::floats: return 0;
        case Format::nvfp4: return weights / 16;
        case Format::fp8: {
            const std::int64_t down = (source.rows + source.block_rows - 1) / source.block_rows;
            return down * ((source.columns + source.block_columns - 1) / source.block_columns) * bytes_of(source.type);
        }
        default: return weights / 32;
    }
}

std::int64_t weight_bytes(const Source &source) {
    const std::int64_t weights = source.rows * source.columns;
    switch (source.format) {
        case Format::affine: return weights * source.bits / 8;
        case Format::floats: return weights * bytes_of(source.type);
        case Format::mxfp4: case Format::nvfp4: return weights / 2;
        default: return weights;
    }
}

bool known_width(int bits) { return bits >= 2 && bits <= 8 && bits != 7; }

bool parse_source(PyObject *described, Source &source, SourceBuffers &buffers) {
    const char *format, *type;
    long long rows, columns, block_rows, block_columns;
    PyObject *weights, *scales, *biases;
    if (!PyTuple_Check(described)) return wrong("a source must be a tuple");
    if (!PyArg_ParseTuple(described, "ssiifLLLLOOO:source", &format, &type, &source.bits, &source.group_size, &source.zero,
                          &rows, &columns, &block_rows, &block_columns, &weights, &scales, &biases)) {
        return false;
    }
    if (!parse_format(format, source.format) || !parse_float(type, source.type)) return false;
    const int size = source.group_size;
    const long long most = 1LL << 31;
    if ((size != 32 && size != 64 && size != 128) || columns <= 0 || columns >= most || columns % size != 0) {
        return wrong("groups must have 32, 64 or 128 weights, and a row a whole number of groups");
    }
    if (rows <= 0 || rows >= most) return wrong("the rows must be from 1 to 2^31");
    if (block_rows <= 0 || block_columns <= 0 || block_rows >= most || block_columns >= most) return wrong("blocks must have rows and columns");
    if (source.format == Format::affine && !known_width(source.bits)) return wrong("affine codes have 2, 3, 4, 5, 6 or 8 bits");
    source.rows = rows, source.columns = columns, source.block_rows = block_rows, source.block_columns = block_columns;
    const std::int64_t size_of_scales = scale_bytes(source);
    std::uint8_t *from_weights, *from_scales, *from_biases;
    if (!take(buffers.weights, weights, weight_bytes(source), "weights", false, false, from_weights)) return false;
    if (!take(buffers.scales, scales, size_of_scales, "scales", false, size_of_scales == 0, from_scales)) return false;
    if (!take(buffers.biases, biases, size_of_scales, "biases", false, true, from_biases)) return false;
    source.weights = from_weights, source.scales = from_scales, source.biases = from_biases;
    return true;
}

bool parse_levels(PyObject *bits, const Source &source, Target &target) {
    target.levels = static_cast<int>(PyTuple_Size(bits));
    if (target.levels < 2 || target.levels > LEVELS) return wrong("a record has two or three levels");
    for (int level = 0; level < target.levels; ++level) {
        target.bits[level] = static_cast<int>(PyLong_AsLong(PyTuple_GetItem(bits, level)));
        if (PyErr_Occurred()) return false;
        const bool nested = level == 0 || target.bits[level] == 2 * target.bits[level - 1];
        if (!known_width(target.bits[level]) || !nested) return wrong("each level must have twice the bits of the one before");
    }
    if (target.exact && (source.format != Format::affine || source.bits > target.bits[target.levels - 1])) {
        return wrong("only affine codes that are not wider than the highest level can be kept");
    }
    return true;
}

bool parse_target(PyObject *described, const Source &source, Target &target, PartBuffers *buffers) {
    const char *type;
    int exact, symmetric;
    PyObject *bits, *zeros, *parts;
    if (!PyTuple_Check(described)) return wrong("a target must be a tuple");
    if (!PyArg_ParseTuple(described, "sppO!O!O!:target", &type, &exact, &symmetric, &PyTuple_Type, &bits, &PyTuple_Type,
                          &zeros, &PyTuple_Type, &parts)) {
        return false;
    }
    target.exact = exact != 0;
    if (symmetric && !exact) return wrong("a projection whose codes are chosen has biases");
    if (!parse_float(type, target.type) || !parse_levels(bits, source, target)) return false;
    if (PyTuple_Size(zeros) != target.levels || PyTuple_Size(parts) != target.levels) {
        return wrong("each level must have a zero and parts");
    }
    const std::int64_t weights = source.rows * source.columns;
    const std::int64_t scales_size = weights / source.group_size * bytes_of(target.type);
    for (int level = 0; level < target.levels; ++level) {
        PyObject *part = PyTuple_GetItem(parts, level), *scales, *biases, *codes;
        target.zero[level] = PyFloat_AsDouble(PyTuple_GetItem(zeros, level));
        if (PyErr_Occurred()) return false;
        if (!PyTuple_Check(part)) return wrong("the parts of a level must be a tuple");
        if (!PyArg_ParseTuple(part, "OOO:parts", &scales, &biases, &codes)) return false;
        if (Py_IsNone(biases) != symmetric) return wrong("biases must be None for a symmetric projection alone");
        const std::int64_t new_bits = level == 0 ? target.bits[0] : target.bits[level] / 2;
        PartBuffers &held = buffers[level];
        Part &to = target.parts[level];
        if (!take(held.scales, scales, scales_size, "a part of scales", true, false, to.scales)) return false;
        if (!take(held.biases, biases, scales_size, "a part of biases", true, true, to.biases)) return false;
        if (!take(held.codes, codes, weights * new_bits / 8, "a part of codes", true, false, to.codes)) return false;
    }
    return true;
}

PyObject *py_pack_projection(PyObject *, PyObject *args) {
    PyObject *source_tuple, *target_tuple;
    Source source{};
    Target target{};
    SourceBuffers from;
    PartBuffers into[LEVELS];
    if (!PyArg_ParseTuple(args, "OO", &source_tuple, &target_tuple)) return nullptr;
    if (!parse_source(source_tuple, source, from) || !parse_target(target_tuple, source, target, into)) return nullptr;
    const std::int64_t groups = rows_of_run(source) * (source.columns / source.group_size);
    const std::unique_ptr<GroupErrors[]> errors(new (std::nothrow) GroupErrors[groups]);
    const std::unique_ptr<Loss[]> losses(new (std::nothrow) Loss[groups]);
    if (errors == nullptr || losses == nullptr) return PyErr_NoMemory();
    Packed packed;
    Py_BEGIN_ALLOW_THREADS;
    packed = pack_projection(source, target, errors.get(), losses.get());
    Py_END_ALLOW_THREADS;
    if (!packed.finite) Py_RETURN_NONE;
    PyObject *by_level = PyTuple_New(target.levels);
    for (int level = 0; by_level != nullptr && level < target.levels; ++level) {
        PyTuple_SetItem(by_level, level, PyFloat_FromDouble(packed.errors[level]));
    }
    return by_level == nullptr ? nullptr : Py_BuildValue("Nd", by_level, packed.energy);
}

PyObject *py_decode_weights(PyObject *, PyObject *args) {
    PyObject *source_tuple, *out;
    Source source{};
    SourceBuffers from;
    View weights;
    if (!PyArg_ParseTuple(args, "OO", &source_tuple, &out) || !parse_source(source_tuple, source, from)) return nullptr;
    const std::int64_t count = source.rows * source.columns;
    std::uint8_t *to;
    if (!take(weights, out, 4 * count, "the result", true, false, to)) return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    decode(source, 0, count, reinterpret_cast<float *>(to));
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyMethodDef FUNCTIONS[] = {
    {"pack_projection", py_pack_projection, METH_VARARGS,
     "pack_projection(source, target): writes one expert's projection into its parts of a record.\n\n"
     "source: (format, dtype, bits, group_size, zero, rows, columns, block_rows, block_columns, weights, scales or None,\n"
     "biases or None); format is affine, float, fp8, mxfp4, mxfp8 or nvfp4, dtype the type of scales (of weights for float).\n"
     "target: (dtype, exact, symmetric, levels, zeros, parts); for each level, parts has writable (scales, biases or None,\n"
     "codes). Returns (squared errors by level, sum of the weights' squares), or None if a weight is not finite."},
    {"decode_weights", py_decode_weights, METH_VARARGS,
     "decode_weights(source, out): the float32 weights of a source, as in pack_projection, into a writable buffer."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_packing(PyObject *module) { return PyModule_AddFunctions(module, FUNCTIONS) == 0; }

}  // namespace headrace
