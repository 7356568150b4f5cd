// Binds `Layer` and `Pool`.
#include <memory>

#include "bitplanes.hpp"
#include "module.hpp"
#include "pool/pool.hpp"
#include "reading/python_reader.hpp"

namespace headrace {
namespace {

PyTypeObject *layer_type = nullptr;

struct PythonLayer {
    std::unique_ptr<Layer> layer;
    View slot_of, warmth, uses, counts;
    std::vector<std::int32_t> ids, distinct;
};

PyObject *layer_new(PyTypeObject *type, PyObject *args, PyObject *) {
    PyObject *slot_of = nullptr, *warmth = nullptr, *uses = nullptr, *counts = nullptr;
    double half_life = 0;
    if (!PyArg_ParseTuple(args, "OOOOd", &slot_of, &warmth, &uses, &counts, &half_life)) return nullptr;
    auto made = std::make_unique<PythonLayer>();
    if (!made->slot_of.take(slot_of, true, 4, "slot_of") || !made->warmth.take(warmth, true, 8, "warmth") ||
        !made->uses.take(uses, true, 8, "uses") || !made->counts.take(counts, true, 8, "counts")) {
        return nullptr;
    }
    const Py_ssize_t experts = made->slot_of.items();
    if (made->warmth.items() != experts || made->uses.items() != experts || made->counts.items() != COUNTS) {
        PyErr_Format(PyExc_ValueError, "warmth and uses need one item for each of the %zd experts, and counts %d", experts, COUNTS);
        return nullptr;
    }
    made->layer = std::make_unique<Layer>(made->slot_of.data<std::int32_t>(), made->warmth.data<double>(),
                                          made->uses.data<std::int64_t>(), static_cast<std::int32_t>(experts),
                                          made->counts.data<std::int64_t>(), half_life);
    return hold(type, made.release());
}

void layer_dealloc(PyObject *self) {
    delete held<PythonLayer>(self);
    free_object(self);
}

// count(ids, tokens, position): uses at each token's own time, and hits and misses of the distinct ids.
PyObject *layer_count(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    PythonLayer &made = *held<PythonLayer>(self);
    if (number != 3 || !read_ids(args[0], made.layer->experts, made.ids)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "count(ids, tokens, position)");
        return nullptr;
    }
    const long long tokens = PyLong_AsLongLong(args[1]), position = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred()) return nullptr;
    const auto all = static_cast<std::int64_t>(made.ids.size());
    if (tokens < 1 || all % tokens != 0) {
        PyErr_Format(PyExc_ValueError, "%lld ids are not those of %lld tokens", static_cast<long long>(all), tokens);
        return nullptr;
    }
    const std::int64_t each = all / tokens;
    for (std::int64_t token = 0; token < tokens; ++token) {
        made.layer->use(made.ids.data() + token * each, each, position + 1 + token);
    }
    made.layer->distinct(made.ids.data(), all, made.distinct);
    made.layer->request(made.distinct);
    Py_RETURN_NONE;
}

// use(ids, time): uses at one time, without hits and misses.
PyObject *layer_use(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    PythonLayer &made = *held<PythonLayer>(self);
    if (number != 2 || !read_ids(args[0], made.layer->experts, made.ids)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "use(ids, time)");
        return nullptr;
    }
    const long long time = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) return nullptr;
    made.layer->use(made.ids.data(), static_cast<std::int64_t>(made.ids.size()), time);
    Py_RETURN_NONE;
}

template <typename Function>
PyCFunction fast(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(function));
}

PyMethodDef LAYER_METHODS[] = {
    {"count", fast(layer_count), METH_FASTCALL,
     "count(ids, tokens, position): count the uses of ids (integers [tokens x any], -1: none), each token at its own time from "
     "position + 1 on, and hits and misses of the distinct ones."},
    {"use", fast(layer_use), METH_FASTCALL, "use(ids, time): count one use of each of ids at a time in tokens."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot LAYER_SLOTS[] = {
    {Py_tp_doc, const_cast<char *>(
                    "Layer(slot_of, warmth, uses, counts, half_life): the books of one layer, in arrays of the caller: int32, "
                    "float64 and int64 [experts], and int64 [4] for hits, misses, reads and bytes.")},
    {Py_tp_new, reinterpret_cast<void *>(layer_new)},
    {Py_tp_dealloc, reinterpret_cast<void *>(layer_dealloc)},
    {Py_tp_methods, LAYER_METHODS},
    {0, nullptr},
};

PyType_Spec LAYER = {"engine.native._core.Layer", sizeof(Holder<PythonLayer>), 0, Py_TPFLAGS_DEFAULT, LAYER_SLOTS};

struct PythonPool {
    std::unique_ptr<Pool> pool;
    PyObject *reader = nullptr;
    PyObject *layer = nullptr;
    std::vector<View> views;
    std::vector<std::int32_t> ids, keep, distinct;
};

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

bool add_source(PyObject *tuple, std::int32_t slots, const Reader &reader, std::int32_t experts, PythonPool &made,
                Recipe &recipe) {
    PyObject *file = nullptr, *offset = nullptr, *memory = nullptr;
    long long size = 0, staging = 0;
    Source source{};
    if (!PyArg_ParseTuple(tuple, "OOLOLi", &file, &offset, &size, &memory, &staging, &source.section)) return false;
    View files, offsets;
    if (!files.take(file, false, 4, "file") || !offsets.take(offset, false, 8, "offset") ||
        !slot_memory(memory, slots, made, source.slots)) {
        return false;
    }
    source.file = files.data<std::int32_t>();
    source.offset = offsets.data<std::int64_t>();
    source.size = size;
    source.staging = staging;
    bool fits = files.items() == experts && offsets.items() == experts && size >= 0;
    for (Py_ssize_t i = 0; fits && i < experts; ++i) {
        fits = source.file[i] >= 0 && static_cast<std::size_t>(source.file[i]) < reader.files() && source.offset[i] >= 0;
    }
    if (source.slots.data != nullptr) fits = fits && source.slots.slot_bytes == size;
    else fits = fits && staging >= 0 && staging + size <= static_cast<long long>(recipe.staging_bytes);
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
        fits = one.staging.back() >= 0 && one.staging.back() + static_cast<std::int64_t>(one.sizes.back()) <=
                                              static_cast<std::int64_t>(recipe.staging_bytes);
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

PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const char *names[] = {"layer", "reader", "slots", "pinned", "sources", "made", "staging_bytes", "keeps_staging",
                                  "checksums", nullptr};
    PyObject *layer = nullptr, *reader = nullptr, *pinned = nullptr, *sources = nullptr, *making = nullptr, *checksums = nullptr;
    int slots = 0, keeps = 0;
    Py_ssize_t staging = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OiOO!O!npO", const_cast<char **>(names), layer_type, &layer, &reader,
                                     &slots, &pinned, &PyList_Type, &sources, &PyList_Type, &making, &staging, &keeps,
                                     &checksums)) {
        return nullptr;
    }
    Reader *native = reader_of(reader);
    if (native == nullptr) return nullptr;
    Layer &books = *held<PythonLayer>(layer)->layer;
    auto made = std::make_unique<PythonPool>();
    View view;
    if (slots < 1 || slots > books.experts || staging < 0 || !view.take(pinned, false, 1, "pinned") ||
        view.items() != books.experts) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%d slots or their pinned experts do not fit %d experts", slots, books.experts);
        return nullptr;
    }
    Recipe recipe;
    recipe.staging_bytes = static_cast<std::size_t>(staging);
    recipe.keeps_staging = keeps != 0;
    if (checksums != Py_None) {
        made->views.emplace_back();
        if (!made->views.back().take(checksums, false, 4, "checksums")) return nullptr;
        recipe.checksums = made->views.back().data<std::uint32_t>();
        recipe.columns = made->views.back().items() / books.experts;
    }
    for (Py_ssize_t i = 0; i < PyList_Size(sources); ++i) {
        if (!add_source(PyList_GetItem(sources, i), slots, *native, books.experts, *made, recipe)) return nullptr;
        if (recipe.checksums != nullptr && recipe.sources.back().section >= recipe.columns) {
            PyErr_SetString(PyExc_ValueError, "a section has no checksum");
            return nullptr;
        }
    }
    for (Py_ssize_t i = 0; i < PyList_Size(making); ++i) {
        if (!add_made(PyList_GetItem(making, i), slots, *made, recipe)) return nullptr;
    }
    std::vector<std::uint8_t> fixed(view.data<std::uint8_t>(), view.data<std::uint8_t>() + view.items());
    made->pool = std::make_unique<Pool>(books, *native, Table(books, slots, std::move(fixed)), std::move(recipe));
    made->reader = Py_NewRef(reader);
    made->layer = Py_NewRef(layer);
    return hold(type, made.release());
}

void pool_dealloc(PyObject *self) {
    PythonPool *made = held<PythonPool>(self);
    if (made != nullptr && !held<Reader>(made->reader)->forked()) {
        Py_BEGIN_ALLOW_THREADS
        made->pool.reset();  // waits for the reads under way
        Py_END_ALLOW_THREADS
        Py_DECREF(made->reader);
        Py_DECREF(made->layer);
        delete made;
    }  // in a process made by fork the memory is left
    free_object(self);
}

bool raise(Pool::Status status) {
    if (status == Pool::CLOSED) set_closed();
    if (status == Pool::TOO_MANY) PyErr_SetString(PyExc_AssertionError, "more experts at once than the pool has slots");
    if (status == Pool::NO_MEMORY) PyErr_NoMemory();
    return status != Pool::DONE;
}

// The pool of a Python object whose first argument is expert numbers. Null with an exception set.
PythonPool *pool_with_ids(PyObject *self, PyObject *const *args, Py_ssize_t number, Py_ssize_t wanted, const char *usage) {
    PythonPool *made = held<PythonPool>(self);
    if (number != wanted) {
        PyErr_SetString(PyExc_TypeError, usage);
        return nullptr;
    }
    if (reader_of(made->reader) == nullptr || !read_ids(args[0], made->pool->layer.experts, made->ids)) return nullptr;
    return made;
}

PyObject *pool_request(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    PythonPool *made = pool_with_ids(self, args, number, 3, "request(experts, keep, speculative)");
    if (made == nullptr) return nullptr;
    made->keep.clear();
    if (args[1] != Py_None && !read_ids(args[1], made->pool->layer.experts, made->keep)) return nullptr;
    const bool speculative = PyObject_IsTrue(args[2]) == 1;
    Pool::Status status = Pool::DONE;
    made->pool->layer.distinct(made->ids.data(), static_cast<std::int64_t>(made->ids.size()), made->distinct);
    Py_BEGIN_ALLOW_THREADS
    status = made->pool->request(made->distinct, made->keep, speculative);
    Py_END_ALLOW_THREADS
    return raise(status) ? nullptr : PyLong_FromLongLong(made->pool->queued);
}

PyObject *waited(const Pool &pool) {
    if (!pool.failed.empty()) return PyLong_FromLong(-1);
    return PyFloat_FromDouble(pool.waited_s * 1e3);
}

PyObject *pool_settle(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    PythonPool *made = pool_with_ids(self, args, number, 1, "settle(experts)");
    if (made == nullptr) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    made->pool->settle(made->ids);
    Py_END_ALLOW_THREADS
    return waited(*made->pool);
}

// decode(ids, time, slots): one token's choice, from uses to slot numbers.
PyObject *pool_decode(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    PythonPool *made = pool_with_ids(self, args, number, 3, "decode(ids, time, slots)");
    if (made == nullptr) return nullptr;
    const long long time = PyLong_AsLongLong(args[1]);
    View slots;
    if (PyErr_Occurred() || !slots.take(args[2], true, 4, "slots")) return nullptr;
    const auto all = static_cast<std::int64_t>(made->ids.size());
    if (slots.items() != all) {
        PyErr_Format(PyExc_ValueError, "slots has %zd items, not %lld", slots.items(), static_cast<long long>(all));
        return nullptr;
    }
    Pool &pool = *made->pool;
    pool.layer.use(made->ids.data(), all, time);
    pool.layer.distinct(made->ids.data(), all, made->distinct);
    pool.layer.request(made->distinct);
    bool cached = pool.settled();
    for (const std::int32_t expert : made->distinct) cached = cached && pool.layer.slot_of[expert] >= 0;
    if (!cached) {
        Pool::Status status = Pool::DONE;
        made->keep.clear();
        Py_BEGIN_ALLOW_THREADS
        status = pool.request(made->distinct, made->keep, false);
        if (status == Pool::DONE) pool.settle(made->distinct);
        Py_END_ALLOW_THREADS
        if (raise(status)) return nullptr;
        if (!pool.failed.empty()) return waited(pool);
    }
    for (std::int64_t i = 0; i < all; ++i) {
        const std::int32_t expert = made->ids[static_cast<std::size_t>(i)];
        slots.data<std::int32_t>()[i] = expert < 0 ? 0 : pool.layer.slot_of[expert];
    }
    if (cached) Py_RETURN_NONE;
    return waited(pool);
}

PyObject *pool_guess(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    PythonPool *made = pool_with_ids(self, args, number, 2, "guess(experts, time)");
    if (made == nullptr) return nullptr;
    const long long time = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) return nullptr;
    long issued = 0;
    for (const std::int32_t expert : made->ids) {
        Pool::Status status = Pool::DONE;
        issued += expert >= 0 && made->pool->guess(expert, made->ids, time, status);
        if (raise(status)) return nullptr;
    }
    return PyLong_FromLong(issued);
}

PyObject *pool_waits_for(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    PythonPool *made = pool_with_ids(self, args, number, 1, "waits_for(experts)");
    if (made == nullptr) return nullptr;
    for (const std::int32_t expert : made->ids) {
        if (made->pool->waits_for(expert)) Py_RETURN_TRUE;
    }
    Py_RETURN_FALSE;
}

PyObject *pool_take_in(PyObject *self, PyObject *) {
    PythonPool *made = held<PythonPool>(self);
    made->pool->take_in();
    Py_RETURN_NONE;
}

PyObject *pool_forget(PyObject *self, PyObject *) {
    PythonPool *made = held<PythonPool>(self);
    if (reader_of(made->reader) == nullptr) return nullptr;
    Py_BEGIN_ALLOW_THREADS
    made->pool->forget();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyObject *numbers(const std::vector<std::int32_t> &found) {
    PyObject *list = PyList_New(0);
    for (const std::int32_t expert : found) {
        PyObject *one = PyLong_FromLong(expert);
        if (list == nullptr || one == nullptr || PyList_Append(list, one) != 0) return nullptr;
        Py_DECREF(one);
    }
    return list;
}

PyObject *pool_guessed(PyObject *self, PyObject *) {
    const Pool &pool = *held<PythonPool>(self)->pool;
    std::vector<std::int32_t> found;
    for (std::int32_t expert = 0; expert < pool.layer.experts; ++expert) {
        if (pool.guessed(expert)) found.push_back(expert);
    }
    return numbers(found);
}

PyObject *pool_failures(PyObject *self, PyObject *) {
    PyObject *list = PyList_New(0);
    for (const Failed &one : held<PythonPool>(self)->pool->failed) {
        PyObject *pair = Py_BuildValue("(iN)", one.expert, failure_tuple(one.failure));
        if (list == nullptr || pair == nullptr || PyList_Append(list, pair) != 0) return nullptr;
        Py_DECREF(pair);
    }
    return list;
}

PyObject *pool_arrived(PyObject *self, PyObject *) { return numbers(held<PythonPool>(self)->pool->arrived); }

PyObject *pool_staging(PyObject *self, PyObject *expert) {
    const Buffer *memory = held<PythonPool>(self)->pool->staging(static_cast<std::int32_t>(PyLong_AsLong(expert)));
    if (PyErr_Occurred()) return nullptr;
    if (memory == nullptr) {
        PyErr_SetString(PyExc_KeyError, "no staging memory is kept for this expert");
        return nullptr;
    }
    return PyMemoryView_FromMemory(reinterpret_cast<char *>(memory->data()), static_cast<Py_ssize_t>(memory->size()), PyBUF_READ);
}

PyObject *pool_release(PyObject *self, PyObject *expert) {
    held<PythonPool>(self)->pool->release(static_cast<std::int32_t>(PyLong_AsLong(expert)));
    return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
}

PyObject *pool_settled(PyObject *self, void *) { return PyBool_FromLong(held<PythonPool>(self)->pool->settled()); }

PyObject *pool_useful(PyObject *self, void *) {
    const Pool &pool = *held<PythonPool>(self)->pool;
    return Py_BuildValue("(Ld)", static_cast<long long>(pool.useful), pool.hidden_s * 1e3);
}

PyObject *pool_changed(PyObject *self, void *) { return PyBool_FromLong(held<PythonPool>(self)->pool->changed); }

int pool_set_changed(PyObject *self, PyObject *flag, void *) {
    held<PythonPool>(self)->pool->changed = flag != nullptr && PyObject_IsTrue(flag) == 1;
    return 0;
}

PyMethodDef POOL_METHODS[] = {
    {"request", fast(pool_request), METH_FASTCALL,
     "request(experts, keep, speculative): assign slots to experts and queue the missing reads; the number queued. Neither they "
     "nor keep (or None) are evicted."},
    {"settle", fast(pool_settle), METH_FASTCALL,
     "settle(experts): wait until they are in their slots; the wait in ms, or -1 if one could not be read (see failures)."},
    {"decode", fast(pool_decode), METH_FASTCALL,
     "decode(ids, time, slots): count the uses of one token's choice, read what is missing, and write the slot numbers (int32). "
     "None if all were cached, otherwise the wait in ms, or -1 if one could not be read."},
    {"guess", fast(pool_guess), METH_FASTCALL, "guess(experts, time): start speculative reads for token `time`; their number."},
    {"waits_for", fast(pool_waits_for), METH_FASTCALL, "waits_for(experts): whether a read of one of them is under way."},
    {"take_in", pool_take_in, METH_NOARGS, "Settle the reads that have ended."},
    {"forget", pool_forget, METH_NOARGS, "Free all slots that are not pinned."},
    {"guessed", pool_guessed, METH_NOARGS, "The experts that were read speculatively and not used yet."},
    {"failures", pool_failures, METH_NOARGS, "Of the last settle or decode: (expert, (kind, code, file, byte, section))."},
    {"arrived", pool_arrived, METH_NOARGS, "Of the last settle or take_in: experts whose staging memory is kept."},
    {"staging", pool_staging, METH_O, "staging(expert): its staging memory, valid until release."},
    {"release", pool_release, METH_O, "release(expert): free its staging memory."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef POOL_VALUES[] = {
    {"settled", pool_settled, nullptr, "Whether no read is under way.", nullptr},
    {"useful", pool_useful, nullptr, "Predicted experts that were used so far, and the ms that their reads had run.", nullptr},
    {"changed", pool_changed, pool_set_changed, "Whether slot_of differs from the device's copy.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot POOL_SLOTS[] = {
    {Py_tp_doc, const_cast<char *>("Pool(layer, reader, slots, pinned, sources, made, staging_bytes, keeps_staging, checksums): "
                                   "the slots of a layer's experts at one width; see engine/cache/pool.py.")},
    {Py_tp_new, reinterpret_cast<void *>(pool_new)},
    {Py_tp_dealloc, reinterpret_cast<void *>(pool_dealloc)},
    {Py_tp_methods, POOL_METHODS},
    {Py_tp_getset, POOL_VALUES},
    {0, nullptr},
};

PyType_Spec POOL = {"engine.native._core.Pool", sizeof(Holder<PythonPool>), 0, Py_TPFLAGS_DEFAULT, POOL_SLOTS};

}  // namespace

bool add_pool(PyObject *module) {
    layer_type = add_type(module, LAYER);
    return layer_type != nullptr && add_type(module, POOL) != nullptr;
}

}  // namespace headrace
