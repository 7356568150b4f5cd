// Binds `Pool`.
#include "module.hpp"
#include "pool/python_pool.hpp"

namespace headrace {
namespace {

PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const char *names[] = {"layer", "reader", "slots", "pinned", "sources", "made", "staging_bytes", "keeps_staging",
                                  "checksums", nullptr};
    PyObject *layer = nullptr, *reader = nullptr, *pinned = nullptr, *sources = nullptr, *making = nullptr, *checksums = nullptr;
    int slots = 0, keeps = 0;
    Py_ssize_t staging = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OiOO!O!npO", const_cast<char **>(names), layer_python_type(), &layer, &reader,
                                     &slots, &pinned, &PyList_Type, &sources, &PyList_Type, &making, &staging, &keeps,
                                     &checksums)) {
        return nullptr;
    }
    Reader *native = reader_of(reader);
    if (native == nullptr) return nullptr;
    Layer &owner = *held<PythonLayer>(layer)->layer;
    auto made = std::make_unique<PythonPool>();
    View view;
    if (slots < 1 || slots > owner.experts || staging < 0 || !view.take(pinned, false, 1, "pinned") ||
        view.items() != owner.experts) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%d slots or their pinned experts do not fit %d experts", slots, owner.experts);
        return nullptr;
    }
    Recipe recipe;
    recipe.staging_bytes = static_cast<std::size_t>(staging);
    recipe.keeps_staging = keeps != 0;
    if (checksums != Py_None) {
        made->views.emplace_back();
        if (!made->views.back().take(checksums, false, 4, "checksums", INTEGERS)) return nullptr;
        recipe.checksums = made->views.back().data<std::uint32_t>();
        recipe.columns = made->views.back().items() / owner.experts;
    }
    for (Py_ssize_t i = 0; i < PyList_Size(sources); ++i) {
        const Ref one(Py_NewRef(PyList_GetItem(sources, i)));
        if (!add_source(one.get(), slots, *native, owner.experts, *made, recipe)) return nullptr;
        if (recipe.checksums != nullptr && recipe.sources.back().section >= recipe.columns) {
            PyErr_SetString(PyExc_ValueError, "a section has no checksum");
            return nullptr;
        }
    }
    for (Py_ssize_t i = 0; i < PyList_Size(making); ++i) {
        const Ref one(Py_NewRef(PyList_GetItem(making, i)));
        if (!add_made(one.get(), slots, *made, recipe)) return nullptr;
    }
    if (!streams_fit(recipe, native->dry())) return nullptr;
    const auto empty = [](const Source &source) { return source.size == 0; };
    if (std::all_of(recipe.sources.begin(), recipe.sources.end(), empty) && (keeps != 0 || !recipe.made.empty())) {
        PyErr_SetString(PyExc_ValueError, "nothing arrives from which tensors could be made");
        return nullptr;
    }
    std::vector<std::uint8_t> fixed(view.data<std::uint8_t>(), view.data<std::uint8_t>() + view.items());
    made->pool = std::make_unique<Pool>(owner, *native, Table(owner, slots, std::move(fixed)), std::move(recipe));
    made->reader = Py_NewRef(reader);
    made->layer = Py_NewRef(layer);
    return hold(type, made.release());
}

void pool_dealloc(PyObject *self) {
    PythonPool *made = held<PythonPool>(self);
    if (made != nullptr && !held<Reader>(made->reader)->forked()) {
        unlocked([made] { made->pool.reset(); });  // waits for the reads under way
        Py_DECREF(made->reader);
        Py_DECREF(made->layer);
        delete made;
    }  // in a process made by fork the memory is left
    free_object(self);
}

PythonLayer &layer_of(PyObject *self) { return *held<PythonLayer>(held<PythonPool>(self)->layer); }

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
    const Use use(layer_of(self));
    PythonPool *made = use ? pool_with_ids(self, args, number, 3, "request(experts, keep, speculative)") : nullptr;
    if (made == nullptr) return nullptr;
    made->keep.clear();
    if (args[1] != Py_None && !read_ids(args[1], made->pool->layer.experts, made->keep)) return nullptr;
    const int speculative = PyObject_IsTrue(args[2]);
    if (speculative < 0) return nullptr;
    Pool::Status status = Pool::DONE;
    made->pool->layer.distinct(made->ids.data(), static_cast<std::int64_t>(made->ids.size()), made->distinct);
    unlocked([&] { status = made->pool->request(made->distinct, made->keep, speculative == 1); });
    return raise(status) ? nullptr : PyLong_FromLongLong(made->pool->queued);
}

PyObject *waited(const Pool &pool) {
    if (!pool.failed.empty()) return PyLong_FromLong(-1);
    return PyFloat_FromDouble(pool.waited_s * 1e3);
}

PyObject *pool_settle(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    const Use use(layer_of(self));
    PythonPool *made = use ? pool_with_ids(self, args, number, 1, "settle(experts)") : nullptr;
    if (made == nullptr) return nullptr;
    unlocked([made] { made->pool->settle(made->ids); });
    return waited(*made->pool);
}

// decode(ids, time, slots): one token's choice, from uses to slot numbers.
PyObject *pool_decode(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    const Use use(layer_of(self));
    PythonPool *made = use ? pool_with_ids(self, args, number, 3, "decode(ids, time, slots)") : nullptr;
    if (made == nullptr) return nullptr;
    const long long time = PyLong_AsLongLong(args[1]);
    View slots;
    if (PyErr_Occurred() || !slots.take(args[2], true, 4, "slots", INTEGERS)) return nullptr;
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
    if (cached) {
        pool.count_useful(made->distinct);
    } else {
        Pool::Status status = Pool::DONE;
        made->keep.clear();
        unlocked([&] {
            status = pool.request(made->distinct, made->keep, false, true);
            if (status == Pool::DONE) pool.settle(made->distinct);
        });
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
    const Use use(layer_of(self));
    PythonPool *made = use ? pool_with_ids(self, args, number, 2, "guess(experts, time)") : nullptr;
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
    const Use use(layer_of(self));
    PythonPool *made = use ? pool_with_ids(self, args, number, 1, "waits_for(experts)") : nullptr;
    if (made == nullptr) return nullptr;
    for (const std::int32_t expert : made->ids) {
        if (made->pool->waits_for(expert)) Py_RETURN_TRUE;
    }
    Py_RETURN_FALSE;
}

PyObject *pool_withdraw(PyObject *self, PyObject *const *args, Py_ssize_t number) {
    const Use use(layer_of(self));
    PythonPool *made = use ? pool_with_ids(self, args, number, 1, "withdraw(experts)") : nullptr;
    if (made == nullptr) return nullptr;
    made->pool->withdraw(made->ids);
    Py_RETURN_NONE;
}

PyObject *pool_take_in(PyObject *self, PyObject *) {
    const Use use(layer_of(self));
    PythonPool *made = held<PythonPool>(self);
    if (!use || reader_of(made->reader) == nullptr) return nullptr;
    made->pool->take_in();
    Py_RETURN_NONE;
}

PyObject *pool_forget(PyObject *self, PyObject *) {
    const Use use(layer_of(self));
    PythonPool *made = held<PythonPool>(self);
    if (!use || reader_of(made->reader) == nullptr) return nullptr;
    unlocked([made] { made->pool->forget(); });
    Py_RETURN_NONE;
}

PyObject *numbers(const std::vector<std::int32_t> &found) {
    Ref list(PyList_New(0));
    for (const std::int32_t expert : found) {
        if (!append(list, PyLong_FromLong(expert))) return nullptr;
    }
    return list.release();
}

PyObject *pool_owed(PyObject *self, PyObject *) {
    const Pool &pool = *held<PythonPool>(self)->pool;
    Ref list(PyList_New(0));
    for (const std::int32_t expert : pool.owed()) {
        const auto [file, offset] = pool.begin(expert);
        if (!append(list, Py_BuildValue("(iLi)", file, static_cast<long long>(offset), expert))) return nullptr;
    }
    return list.release();
}

PyObject *pool_fetch(PyObject *self, PyObject *argument) {
    const Use use(layer_of(self));
    PythonPool *made = held<PythonPool>(self);
    if (!use || reader_of(made->reader) == nullptr) return nullptr;
    const long expert = PyLong_AsLong(argument);
    if (PyErr_Occurred()) return nullptr;
    Pool &pool = *made->pool;
    if (pool.dry || expert < 0 || expert >= pool.layer.experts || !pool.owes(static_cast<std::int32_t>(expert))) {
        PyErr_Format(PyExc_ValueError, "expert %ld has no slot that lacks its bytes", expert);
        return nullptr;
    }
    Pool::Status status = Pool::DONE;
    unlocked([&] { status = pool.fetch(static_cast<std::int32_t>(expert)); });
    if (raise(status)) return nullptr;
    Py_RETURN_NONE;
}

PyObject *pool_disown(PyObject *self, PyObject *) {
    const Use use(layer_of(self));
    return use ? PyLong_FromLongLong(held<PythonPool>(self)->pool->disown()) : nullptr;
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
    Ref list(PyList_New(0));
    for (const Failed &one : held<PythonPool>(self)->pool->failed) {
        if (!append(list, Py_BuildValue("(iN)", one.expert, failure_tuple(one.failure)))) return nullptr;
    }
    return list.release();
}

PyObject *pool_arrived(PyObject *self, PyObject *) { return numbers(held<PythonPool>(self)->pool->arrived); }

PyObject *pool_staging(PyObject *self, PyObject *expert) {
    const Use use(layer_of(self));
    PythonPool *made = held<PythonPool>(self);
    if (!use || reader_of(made->reader) == nullptr) return nullptr;
    const long number = PyLong_AsLong(expert);
    if (PyErr_Occurred()) return nullptr;
    Buffer memory = number >= 0 && number < made->pool->layer.experts ? made->pool->take_staging(static_cast<std::int32_t>(number)) : Buffer();
    if (memory.size() == 0) {
        PyErr_SetString(PyExc_KeyError, "no staging memory is kept for this expert");
        return nullptr;
    }
    return staging_view(std::move(memory), made->reader);
}

PyObject *pool_settled(PyObject *self, void *) { return PyBool_FromLong(held<PythonPool>(self)->pool->settled()); }

PyObject *pool_useful(PyObject *self, void *) {
    const Pool &pool = *held<PythonPool>(self)->pool;
    return Py_BuildValue("(Ld)", static_cast<long long>(pool.useful), pool.hidden_s * 1e3);
}

template <bool Pool::*flag> PyObject *get_flag(PyObject *self, void *) {
    return PyBool_FromLong((*held<PythonPool>(self)->pool).*flag);
}

template <bool Pool::*flag> int set_flag(PyObject *self, PyObject *value, void *) {
    (*held<PythonPool>(self)->pool).*flag = value != nullptr && PyObject_IsTrue(value) == 1;
    return 0;
}

PyMethodDef POOL_METHODS[] = {
    {"request", method<pool_request>(), METH_FASTCALL,
     "request(experts, keep, speculative): assign slots to experts and queue the missing reads; the number queued. Neither they "
     "nor keep (or None) are evicted."},
    {"settle", method<pool_settle>(), METH_FASTCALL,
     "settle(experts): wait until they are in their slots; the wait in ms, or -1 if one could not be read (see failures)."},
    {"decode", method<pool_decode>(), METH_FASTCALL,
     "decode(ids, time, slots): count the uses of one token's choice, read what is missing, and write the slot numbers (int32). "
     "None if all were cached, otherwise the wait in ms, or -1 if one could not be read."},
    {"guess", method<pool_guess>(), METH_FASTCALL, "guess(experts, time): start speculative reads for token `time`; their number."},
    {"waits_for", method<pool_waits_for>(), METH_FASTCALL, "waits_for(experts): whether a read of one of them is under way."},
    {"withdraw", method<pool_withdraw>(), METH_FASTCALL, "withdraw(experts): drop other speculative reads that have not begun."},
    {"take_in", method<pool_take_in>(), METH_NOARGS, "Settle the reads that have ended."},
    {"forget", method<pool_forget>(), METH_NOARGS, "Free all slots that are not pinned."},
    {"owed", method<pool_owed>(), METH_NOARGS, "(file, offset, expert) for each expert whose slot lacks its bytes, since it was placed dry."},
    {"fetch", method<pool_fetch>(), METH_O, "fetch(expert): queue the reads of one of them; settle it afterwards."},
    {"disown", method<pool_disown>(), METH_NOARGS, "Take the slots of experts that lack their bytes; their number."},
    {"guessed", method<pool_guessed>(), METH_NOARGS, "The experts that were read speculatively and not used yet."},
    {"failures", method<pool_failures>(), METH_NOARGS, "Of the last settle or decode: (expert, (kind, code, file, byte, section))."},
    {"arrived", method<pool_arrived>(), METH_NOARGS, "Of the last settle or take_in: experts whose staging memory is kept."},
    {"staging", method<pool_staging>(), METH_O,
     "staging(expert): a view of its staging memory (bytes), which now belongs to the caller: a second call raises KeyError."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef POOL_VALUES[] = {
    {"settled", pool_settled, nullptr, "Whether no read is under way.", nullptr},
    {"dry", get_flag<&Pool::dry>, set_flag<&Pool::dry>, "Whether experts get slots without being read.", nullptr},
    {"useful", pool_useful, nullptr, "Predicted experts that were used so far, and the ms that their reads had run.", nullptr},
    {"changed", get_flag<&Pool::changed>, set_flag<&Pool::changed>, "Whether slot_of differs from the device's copy.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot POOL_SLOTS[] = {
    {Py_tp_doc, const_cast<char *>("Pool(layer, reader, slots, pinned, sources, made, staging_bytes, keeps_staging, checksums): "
                                   "the slots of a layer's experts at one width; see engine/cache/pool.py.")},
    {Py_tp_new, reinterpret_cast<void *>(Border<pool_new>::call)},
    {Py_tp_dealloc, reinterpret_cast<void *>(pool_dealloc)},
    {Py_tp_methods, POOL_METHODS},
    {Py_tp_getset, POOL_VALUES},
    {0, nullptr},
};

PyType_Spec POOL = {"engine.native._core.Pool", sizeof(Holder<PythonPool>), 0, Py_TPFLAGS_DEFAULT, POOL_SLOTS};

}  // namespace

bool add_pool(PyObject *module) {
    return add_type(module, POOL) != nullptr;
}

}  // namespace headrace
