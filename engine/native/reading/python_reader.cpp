#include "reading/python_reader.hpp"

#include "module.hpp"

namespace headrace {
namespace {

PyTypeObject *reader_type = nullptr;
PyTypeObject *load_type = nullptr;
PyObject *closed_error = nullptr;

// A load that Python submitted, with what it writes to and what it needs to live.
struct PythonLoad {
    LoadPtr load;
    PyObject *reader = nullptr;
    std::vector<View> views;
};

bool integers(PyObject *list, const char *what, std::vector<std::int64_t> &found) {
    const Py_ssize_t number = PyList_Size(list);
    for (Py_ssize_t i = 0; i < number; ++i) {
        found.push_back(PyLong_AsLongLong(PyList_GetItem(list, i)));
    }
    if (!PyErr_Occurred()) return true;
    PyErr_Format(PyExc_TypeError, "%s: a list of integers is needed", what);
    return false;
}

PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const char *names[] = {"fds", "memory", "threads", "block_bytes", "alignment", "least", "apart", "scratch_unit",
                                  "gbps", "device", nullptr};
    ReaderOptions options;
    PyObject *fds = nullptr, *memory = nullptr;
    int apart = 0;
    long long block = 0, alignment = 1, least = 1, unit = 4096;
    const char *device = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!iLLLpLdz", const_cast<char **>(names), &PyList_Type, &fds,
                                     &PyList_Type, &memory, &options.threads, &block, &alignment, &least, &apart, &unit,
                                     &options.gbps, &device)) {
        return nullptr;
    }
    std::vector<std::int64_t> numbers;
    if (!integers(fds, "fds", numbers) || !integers(memory, "memory", options.memory)) return nullptr;
    for (const std::int64_t fd : numbers) options.fds.push_back(static_cast<int>(fd));
    if (options.threads < 1 || block < 1 || alignment < 1 || options.memory.size() != options.fds.size() || unit < 0) {
        PyErr_SetString(PyExc_ValueError, "threads, block_bytes and alignment are at least 1, and memory has one entry a file");
        return nullptr;
    }
    options.block_bytes = block;
    options.scratch_unit = unit;
    options.rules = {alignment, least, apart != 0};
    if (device != nullptr) {
        std::string error;
        options.device.reset(DeviceCopy::open(device, error));
        if (options.device == nullptr) {
            PyErr_Format(PyExc_OSError, "%s: %s", device, error.c_str());
            return nullptr;
        }
        for (std::int64_t &one : options.memory) one = 0;
    }
    return hold(type, new Reader(std::move(options)));
}

void reader_dealloc(PyObject *self) {
    Reader *reader = held<Reader>(self);
    if (reader != nullptr && !reader->forked()) {
        Py_BEGIN_ALLOW_THREADS
        delete reader;
        Py_END_ALLOW_THREADS
    }  // a copy made by fork has no threads to end, and its mutex may be locked: its memory is left
    free_object(self);
}

bool add_ranges(PyObject *list, const Reader &reader, PythonLoad &made, std::vector<Range> &ranges) {
    for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
        int file = 0;
        long long offset = 0;
        PyObject *into = nullptr;
        if (!PyArg_ParseTuple(PyList_GetItem(list, i), "iLO", &file, &offset, &into)) return false;
        made.views.emplace_back();
        if (!made.views.back().take(into, true, 0, "into")) return false;
        if (file < 0 || static_cast<std::size_t>(file) >= reader.files() || offset < 0) {
            PyErr_Format(PyExc_ValueError, "file %d at byte %lld: the reader has %zu files", file, offset, reader.files());
            return false;
        }
        ranges.push_back({file, offset, made.views.back().bytes(), made.views.back().data<std::uint8_t>()});
    }
    return true;
}

PyObject *reader_submit(PyObject *self, PyObject *args) {
    PyObject *list = nullptr;
    int speculative = 0;
    if (!PyArg_ParseTuple(args, "O!|p", &PyList_Type, &list, &speculative)) return nullptr;
    Reader *reader = reader_of(self);
    if (reader == nullptr) return nullptr;
    auto made = std::make_unique<PythonLoad>();
    std::vector<Range> ranges;
    if (!add_ranges(list, *reader, *made, ranges)) return nullptr;
    made->load = std::make_shared<Load>();
    if (!reader->submit(made->load, ranges, speculative != 0)) {
        set_closed();
        return nullptr;
    }
    made->reader = Py_NewRef(self);
    return hold(load_type, made.release());
}

PyObject *reader_close(PyObject *self, PyObject *args) {
    int drop = 0;
    if (!PyArg_ParseTuple(args, "|p", &drop)) return nullptr;
    Reader *reader = held<Reader>(self);
    if (!reader->forked()) {
        Py_BEGIN_ALLOW_THREADS
        reader->close(drop != 0);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

PyObject *reader_inject(PyObject *self, PyObject *args, PyObject *kwargs) {
    static const char *names[] = {"file", "begin", "end", "error", "most", "delay_s", "times", "skip", nullptr};
    Fault fault;
    long long begin = 0, end = INT64_MAX, most = -1, times = -1;
    int skip = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$iLLiLdLp", const_cast<char **>(names), &fault.file, &begin, &end,
                                     &fault.error, &most, &fault.delay_s, &times, &skip)) {
        return nullptr;
    }
    fault.begin = begin;
    fault.end = end;
    fault.most = most;
    fault.times = times;
    fault.skip = skip != 0;
    held<Reader>(self)->faults.inject(fault);
    Py_RETURN_NONE;
}

PyObject *reader_heal(PyObject *self, PyObject *) {
    held<Reader>(self)->faults.heal();
    Py_RETURN_NONE;
}

PyObject *reader_hold(PyObject *self, PyObject *flag) {
    held<Reader>(self)->faults.hold(PyObject_IsTrue(flag) == 1);
    Py_RETURN_NONE;
}

PyObject *reader_record(PyObject *self, PyObject *flag) {
    held<Reader>(self)->faults.record(PyObject_IsTrue(flag) == 1);
    Py_RETURN_NONE;
}

PyObject *reader_calls(PyObject *self, PyObject *) {
    PyObject *list = PyList_New(0);
    for (const ReadCall &call : held<Reader>(self)->faults.calls()) {
        PyObject *into = PyList_New(0);
        for (const iovec &view : call.into) {
            PyObject *pair = Py_BuildValue("(Kn)", static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(view.iov_base)),
                                           static_cast<Py_ssize_t>(view.iov_len));
            if (into == nullptr || pair == nullptr || PyList_Append(into, pair) != 0) return nullptr;
            Py_DECREF(pair);
        }
        PyObject *one = Py_BuildValue("(iLNO)", call.file, static_cast<long long>(call.offset), into,
                                      call.speculative ? Py_True : Py_False);
        if (list == nullptr || one == nullptr || PyList_Append(list, one) != 0) return nullptr;
        Py_DECREF(one);
    }
    return list;
}

PyObject *reader_totals(PyObject *self, void *) {
    const Reader *reader = held<Reader>(self);
    return Py_BuildValue("(LL)", static_cast<long long>(reader->reads()), static_cast<long long>(reader->bytes_read()));
}

PyObject *reader_closed(PyObject *self, void *) { return PyBool_FromLong(held<Reader>(self)->closed()); }

PyMethodDef READER_METHODS[] = {
    {"submit", reader_submit, METH_VARARGS,
     "submit(ranges, speculative=False): queue one load of ranges [(file number, byte offset, writable buffer)]. The load keeps "
     "the buffers alive."},
    {"close", reader_close, METH_VARARGS,
     "close(drop=False): finish demand reads (drop: only those that have begun), drop speculative ones, end the threads."},
    {"inject", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(reader_inject)), METH_VARARGS | METH_KEYWORDS,
     "inject(*, file=-1, begin=0, end=inf, error=0, most=-1, delay_s=0, times=-1, skip=False): for tests, what happens to read "
     "calls that touch these bytes: an errno, at most so many bytes, a delay in s, or success without reading."},
    {"heal", reader_heal, METH_NOARGS, "Remove all faults."},
    {"hold", reader_hold, METH_O, "hold(flag): for tests, let reads wait until hold(False)."},
    {"record", reader_record, METH_O, "record(flag): for tests, keep a list of the read calls from now on."},
    {"calls", reader_calls, METH_NOARGS, "The recorded calls: (file, offset, [(address, bytes)], speculative)."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef READER_VALUES[] = {
    {"totals", reader_totals, nullptr, "Blocks read and bytes transferred so far.", nullptr},
    {"closed", reader_closed, nullptr, "Whether the reader is closed.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot READER_SLOTS[] = {
    {Py_tp_doc, const_cast<char *>(
                    "Reader(fds, memory, threads, block_bytes, alignment, least, apart, scratch_unit, gbps, device): threads that "
                    "read from open files. memory: alignment of destinations by file; device: the CUDA driver's library or None.")},
    {Py_tp_new, reinterpret_cast<void *>(reader_new)},
    {Py_tp_dealloc, reinterpret_cast<void *>(reader_dealloc)},
    {Py_tp_methods, READER_METHODS},
    {Py_tp_getset, READER_VALUES},
    {0, nullptr},
};

PyType_Spec READER = {"engine.native._core.Reader", sizeof(Holder<Reader>), 0, Py_TPFLAGS_DEFAULT, READER_SLOTS};

void load_dealloc(PyObject *self) {
    PythonLoad *made = held<PythonLoad>(self);
    if (made != nullptr && !held<Reader>(made->reader)->forked()) {
        Reader *reader = held<Reader>(made->reader);
        Py_BEGIN_ALLOW_THREADS
        reader->cancel(made->load);
        reader->join(made->load);  // no thread may write to the buffers after they are released
        Py_END_ALLOW_THREADS
        Py_DECREF(made->reader);
        delete made;
    }
    free_object(self);
}

Reader *load_reader(PyObject *self) { return reader_of(held<PythonLoad>(self)->reader); }

PyObject *load_wait(PyObject *self, PyObject *) {
    Reader *reader = load_reader(self);
    if (reader == nullptr) return nullptr;
    const LoadPtr load = held<PythonLoad>(self)->load;
    Py_BEGIN_ALLOW_THREADS
    reader->join(load);
    Py_END_ALLOW_THREADS
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
    {"wait", load_wait, METH_NOARGS, "Wait until no thread writes any more. None, or the failure (kind, code, file, byte, section)."},
    {"cancel", load_cancel, METH_NOARGS, "Drop the blocks that no thread has begun; whether there were any."},
    {"hurry", load_hurry, METH_NOARGS, "Move a speculative load before all other speculative ones."},
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

Reader *reader_of(PyObject *object) {
    if (!PyObject_TypeCheck(object, reader_type)) {
        PyErr_SetString(PyExc_TypeError, "a Reader is needed");
        return nullptr;
    }
    Reader *reader = held<Reader>(object);
    if (!reader->forked()) return reader;
    PyErr_SetString(PyExc_RuntimeError, "the reader's threads do not exist in a process made by fork; load the model there");
    return nullptr;
}

void set_closed() { PyErr_SetString(closed_error, "the reader is closed"); }

PyObject *failure_tuple(const Failure &failure) {
    return Py_BuildValue("(iiiLi)", static_cast<int>(failure.kind), failure.code, failure.file,
                         static_cast<long long>(failure.at), failure.section);
}

bool add_reader(PyObject *module) {
    static const char *kinds[] = {"NONE", "READ", "END_OF_FILE", "CANCELLED", "CHECKSUM", "DEVICE", "MEMORY"};
    for (int i = 0; i < 7; ++i) {
        if (PyModule_AddIntConstant(module, kinds[i], i) != 0) return false;
    }
    closed_error = PyErr_NewException("engine.native._core.ReaderClosed", nullptr, nullptr);
    if (closed_error == nullptr || PyModule_AddObjectRef(module, "ReaderClosed", closed_error) != 0) return false;
    reader_type = add_type(module, READER);
    load_type = add_type(module, LOAD);
    return reader_type != nullptr && load_type != nullptr;
}

}  // namespace headrace
