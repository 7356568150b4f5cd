// Binds `Load`.
#include "module.hpp"
#include "reading/python_reader.hpp"

namespace headrace {
namespace {

PyTypeObject *load_type = nullptr;

// A load that Python submitted, with what it writes to and what it needs to live.
struct PythonLoad {
    LoadPtr load = std::make_shared<Load>();
    PyObject *reader = nullptr;  // null: not submitted
    std::vector<View> views;
};

bool add_ranges(PyObject *list, const Reader &reader, PythonLoad &made, std::vector<Range> &ranges) {
    for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
        const Ref one(Py_NewRef(PyList_GetItem(list, i)));
        int file = 0;
        long long offset = 0;
        PyObject *into = nullptr;
        if (!PyTuple_Check(one.get())) {
            PyErr_SetString(PyExc_TypeError, "a range is a tuple (file number, byte offset, writable buffer)");
            return false;
        }
        if (!PyArg_ParseTuple(one.get(), "iLO", &file, &offset, &into)) return false;
        made.views.emplace_back();
        if (!made.views.back().take(into, true, 0, "into")) return false;
        if (file < 0 || static_cast<std::size_t>(file) >= reader.files() || offset < 0 || offset > MOST_OFFSET) {
            PyErr_Format(PyExc_ValueError, "file %d at byte %lld: the reader has %zu files", file, offset, reader.files());
            return false;
        }
        ranges.push_back({file, offset, made.views.back().bytes(), made.views.back().data<std::uint8_t>()});
    }
    return true;
}

void load_dealloc(PyObject *self) {
    PythonLoad *made = held<PythonLoad>(self);
    Reader *reader = made != nullptr && made->reader != nullptr ? held<Reader>(made->reader) : nullptr;
    if (reader == nullptr || !reader->forked()) {
        if (reader != nullptr) {
            unlocked([reader, made] {
                reader->cancel(made->load);
                reader->join(made->load);  // no thread may write to the buffers after they are released
            });
            Py_DECREF(made->reader);
        }
        delete made;
    }
    free_object(self);
}

Reader *load_reader(PyObject *self) { return reader_of(held<PythonLoad>(self)->reader); }

PyObject *load_wait(PyObject *self, PyObject *) {
    Reader *reader = load_reader(self);
    if (reader == nullptr) return nullptr;
    const LoadPtr load = held<PythonLoad>(self)->load;
    unlocked([reader, &load] { reader->join(load); });
    if (load->failure.kind == Failure::NONE) Py_RETURN_NONE;
    return failure_tuple(load->failure);
}

PyObject *load_cancel(PyObject *self, PyObject *) {
    Reader *reader = load_reader(self);
    return reader == nullptr ? nullptr : PyBool_FromLong(reader->cancel(held<PythonLoad>(self)->load));
}

PyObject *load_hurry(PyObject *self, PyObject *) {
    Reader *reader = load_reader(self);
    if (reader == nullptr) return nullptr;
    reader->hurry(held<PythonLoad>(self)->load);
    Py_RETURN_NONE;
}

PyObject *load_done(PyObject *self, void *) {
    return PyBool_FromLong(held<PythonLoad>(self)->load->done.load(std::memory_order_acquire));
}

PyMethodDef LOAD_METHODS[] = {
    {"wait", method<load_wait>(), METH_NOARGS, "Wait until no thread writes any more. None, or the failure (kind, code, file, byte, section)."},
    {"cancel", method<load_cancel>(), METH_NOARGS, "Drop the blocks that no thread has begun; whether there were any."},
    {"hurry", method<load_hurry>(), METH_NOARGS, "Move a speculative load before all other speculative ones."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef LOAD_VALUES[] = {
    {"done", load_done, nullptr, "Whether no thread writes any more.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot LOAD_SLOTS[] = {
    {Py_tp_doc, const_cast<char *>("The reads of one call of Reader.submit.")},
    {Py_tp_dealloc, reinterpret_cast<void *>(load_dealloc)},
    {Py_tp_methods, LOAD_METHODS},
    {Py_tp_getset, LOAD_VALUES},
    {0, nullptr},
};

PyType_Spec LOAD = {"engine.native._core.Load", sizeof(Holder<PythonLoad>), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, LOAD_SLOTS};

}  // namespace

PyObject *submit_load(PyObject *self, PyObject *args) {
    PyObject *list = nullptr;
    int speculative = 0;
    if (!PyArg_ParseTuple(args, "O!|p", &PyList_Type, &list, &speculative)) return nullptr;
    Reader *reader = reader_of(self);
    if (reader == nullptr) return nullptr;
    Ref object(hold(load_type, new PythonLoad));
    if (object.get() == nullptr) return nullptr;
    PythonLoad &made = *held<PythonLoad>(object.get());
    std::vector<Range> ranges;
    if (!add_ranges(list, *reader, made, ranges)) return nullptr;
    if (!reader->submit(made.load, ranges, speculative != 0)) {
        set_closed();
        return nullptr;
    }
    made.reader = Py_NewRef(self);
    return object.release();
}

bool add_load(PyObject *module) {
    load_type = add_type(module, LOAD);
    return load_type != nullptr;
}

}  // namespace headrace
