// Binds `Layer`.
#include "module.hpp"
#include "pool/python_pool.hpp"

namespace headrace {
namespace {

PyTypeObject *layer_type = nullptr;

PyObject *layer_new(PyTypeObject *type, PyObject *args, PyObject *) {
    PyObject *slot_of = nullptr, *warmth = nullptr, *uses = nullptr, *counts = nullptr;
    double half_life = 0;
    if (!PyArg_ParseTuple(args, "OOOOd", &slot_of, &warmth, &uses, &counts, &half_life)) return nullptr;
    auto made = std::make_unique<PythonLayer>();
    if (!made->slot_of.take(slot_of, true, 4, "slot_of", INTEGERS) || !made->warmth.take(warmth, true, 8, "warmth", "d") ||
        !made->uses.take(uses, true, 8, "uses", INTEGERS) || !made->counts.take(counts, true, 8, "counts", INTEGERS)) {
        return nullptr;
    }
    const Py_ssize_t experts = made->slot_of.items();
    if (!(half_life > 0) || experts > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "half_life is above 0, and experts have numbers of 32 bits");
        return nullptr;
    }
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
    const Use use(made);
    if (!use) return nullptr;
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
    const Use use(made);
    if (!use) return nullptr;
    if (number != 2 || !read_ids(args[0], made.layer->experts, made.ids)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "use(ids, time)");
        return nullptr;
    }
    const long long time = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) return nullptr;
    made.layer->use(made.ids.data(), static_cast<std::int64_t>(made.ids.size()), time);
    Py_RETURN_NONE;
}

PyMethodDef LAYER_METHODS[] = {
    {"count", method<layer_count>(), METH_FASTCALL,
     "count(ids, tokens, position): count the uses of ids (integers [tokens x any], -1: none), each token at its own time from "
     "position + 1 on, and hits and misses of the distinct ones."},
    {"use", method<layer_use>(), METH_FASTCALL, "use(ids, time): count one use of each of ids at a time in tokens."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot LAYER_SLOTS[] = {
    {Py_tp_doc, const_cast<char *>(
                    "Layer(slot_of, warmth, uses, counts, half_life): the state of one layer, in arrays of the caller: int32, "
                    "float64 and int64 [experts], and int64 [5] for hits, misses, reads, bytes and requests with a miss.")},
    {Py_tp_new, reinterpret_cast<void *>(Border<layer_new>::call)},
    {Py_tp_dealloc, reinterpret_cast<void *>(layer_dealloc)},
    {Py_tp_methods, LAYER_METHODS},
    {0, nullptr},
};

PyType_Spec LAYER = {"engine.native._core.Layer", sizeof(Holder<PythonLayer>), 0, Py_TPFLAGS_DEFAULT, LAYER_SLOTS};

}  // namespace

PyTypeObject *layer_python_type() { return layer_type; }

bool add_layer(PyObject *module) {
    layer_type = add_type(module, LAYER);
    return layer_type != nullptr;
}

}  // namespace headrace
