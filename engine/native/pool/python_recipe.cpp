// Recipes from the tuples that Python gives.
#include "bitplanes/bitplanes.hpp"
#include "pool/python_pool.hpp"

namespace headrace {
namespace {

// The memory of all slots in a buffer; none for None.
bool slot_memory(PyObject *object, std::int32_t slots, PythonPool &made, SlotMemory &memory) {
    if (object == Py_None) return true;
    made.views.emplace_back();
    View &view = made.views.back();
    if (!view.take(object, true, 0, "slots")) return false;
    if (view.bytes() % slots != 0) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not %d slots", view.bytes(), slots);
        return false;
    }
    memory = {view.data<std::uint8_t>(), view.bytes() / slots};
    return true;
}

bool is_tuple(PyObject *object) {
    if (PyTuple_Check(object)) return true;
    PyErr_SetString(PyExc_TypeError, "sources and made are lists of tuples");
    return false;
}

// Whether `size` bytes at `at` are within `all`.
bool within(long long at, long long size, std::size_t all) {
    return at >= 0 && size >= 0 && static_cast<std::size_t>(size) <= all && static_cast<std::size_t>(at) <= all - static_cast<std::size_t>(size);
}

}  // namespace

bool add_source(PyObject *tuple, std::int32_t slots, const Reader &reader, std::int32_t experts, PythonPool &made,
                Recipe &recipe) {
    PyObject *file = nullptr, *offset = nullptr, *memory = nullptr;
    long long size = 0, staging = 0;
    Source source{};
    source.joined = -1;
    if (!is_tuple(tuple)) return false;
    if (!PyArg_ParseTuple(tuple, "OOLOLi|i", &file, &offset, &size, &memory, &staging, &source.section, &source.joined)) {
        return false;
    }
    View files, offsets;
    if (!files.take(file, false, 4, "file", INTEGERS) || !offsets.take(offset, false, 8, "offset", INTEGERS) ||
        !slot_memory(memory, slots, made, source.slots)) {
        return false;
    }
    source.file = files.data<std::int32_t>();
    source.offset = offsets.data<std::int64_t>();
    source.size = size;
    source.staging = staging;
    static std::uint8_t nowhere;
    if (reader.dry()) source.slots = {&nowhere, 0};
    bool fits = files.items() == experts && offsets.items() == experts && size >= 0;
    for (Py_ssize_t i = 0; fits && i < experts; ++i) {
        fits = source.file[i] >= 0 && static_cast<std::size_t>(source.file[i]) < reader.files() && source.offset[i] >= 0 &&
               source.offset[i] <= MOST_OFFSET;
    }
    if (source.slots.data != nullptr) fits = fits && (reader.dry() || source.slots.slot_bytes == size);
    else fits = fits && within(staging, size, recipe.staging_bytes);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "a source's files, offsets or size do not fit the reader, the experts or the slots");
        return false;
    }
    made.views.push_back(std::move(files));
    made.views.push_back(std::move(offsets));
    recipe.sources.push_back(source);
    return true;
}

bool add_made(PyObject *tuple, std::int32_t slots, PythonPool &made, Recipe &recipe) {
    static const char *names[] = {"widen_bf16", "widen_f16", "join", "bias_f32", "bias_f16", "bias_bf16"};
    const char *how = nullptr;
    PyObject *parts = nullptr, *sizes = nullptr, *scales = nullptr, *memory = nullptr;
    Made one{};
    if (!is_tuple(tuple)) return false;
    if (!PyArg_ParseTuple(tuple, "sO!O!idOO", &how, &PyList_Type, &parts, &PyList_Type, &sizes, &one.bits, &one.zero, &scales,
                          &memory) ||
        !slot_memory(scales, slots, made, one.scales) || !slot_memory(memory, slots, made, one.slots)) {
        return false;
    }
    int kind = 0;
    while (kind < 6 && std::strcmp(how, names[kind]) != 0) ++kind;
    one.how = static_cast<Making>(kind);
    std::size_t total = 0;
    bool fits = kind < 6 && PyList_Size(parts) == PyList_Size(sizes) && PyList_Size(parts) <= 8 && one.slots.data != nullptr;
    for (Py_ssize_t i = 0; fits && i < PyList_Size(parts); ++i) {
        one.staging.push_back(PyLong_AsLongLong(PyList_GetItem(parts, i)));
        one.sizes.push_back(PyLong_AsSize_t(PyList_GetItem(sizes, i)));
        if (PyErr_Occurred()) return false;
        fits = one.sizes.back() <= recipe.staging_bytes &&
               within(one.staging.back(), static_cast<long long>(one.sizes.back()), recipe.staging_bytes);
        total += one.sizes.back();
    }
    const auto bytes = static_cast<std::size_t>(one.slots.slot_bytes);
    const bool bias = one.how >= Making::BIAS_F32;
    if (bias) fits = fits && one.scales.slot_bytes == one.slots.slot_bytes;
    else if (one.how == Making::JOIN) {
        fits = fits && total == bytes && planes_fit(one.sizes.data(), static_cast<int>(one.sizes.size()), one.bits);
    } else {
        fits = fits && one.sizes.size() == 1 && total == bytes / 2;
    }
    if (!fits) {
        PyErr_Format(PyExc_ValueError, "%s: parts or slots do not fit each other", how);
        return false;
    }
    recipe.made.push_back(std::move(one));
    return true;
}

// The streams of codes are those that the codes are made of, and no biases are derived from codes.
bool streams_fit(const Recipe &recipe, bool dry) {
    std::vector<std::int64_t> all(recipe.sources.size(), 0);
    bool fits = true;
    for (const Source &source : recipe.sources) {
        const auto number = static_cast<std::size_t>(source.joined);  // of -1: beyond all
        if (number < all.size()) all[number] += source.size;
        else fits = fits && source.joined == -1;
    }
    for (const Source &source : recipe.sources) {
        if (!fits || source.joined < 0) continue;
        const auto number = static_cast<std::size_t>(source.joined);
        fits = source.size > 0 && (all[number] == 2 * source.size || all[number] == 4 * source.size);
        if (!fits || dry) continue;
        fits = number < recipe.made.size() && recipe.made[number].how == Making::JOIN && source.slots.data == nullptr &&
               recipe.made[number].slots.slot_bytes == all[number];
        if (!fits) continue;
        const Made &codes = recipe.made[number];
        const auto stream = std::find(codes.staging.begin(), codes.staging.end(), source.staging);
        fits = stream != codes.staging.end() &&
               codes.sizes[static_cast<std::size_t>(stream - codes.staging.begin())] == static_cast<std::size_t>(source.size);
    }
    for (const Made &bias : recipe.made) {
        for (const Made &one : recipe.made) {
            fits = fits && (bias.how < Making::BIAS_F32 || one.how != Making::JOIN || one.slots.data != bias.scales.data);
        }
    }
    if (!fits) PyErr_SetString(PyExc_ValueError, "sources are no streams of the codes that they give the number of");
    return fits;
}

}  // namespace headrace
