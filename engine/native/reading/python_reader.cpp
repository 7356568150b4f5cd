#include "reading/python_reader.hpp"

#include <climits>
#include <cmath>

#include "module.hpp"

namespace headrace {
namespace {

constexpr int MOST_THREADS = 1024;
constexpr long long MOST_BLOCK = 1LL << 60, MOST_UNIT = 1LL << 30;  // sums with places in a file stay far from overflow

PyTypeObject *reader_type = nullptr;
PyObject *closed_error = nullptr;

// The integers in a list, 0 .. `most`. False with an exception set.
bool integers(PyObject *list, const char *what, std::int64_t most, std::vector<std::int64_t> &found) {
    const Py_ssize_t number = PyList_Size(list);
    for (Py_ssize_t i = 0; i < number; ++i) {
        const long long one = PyLong_AsLongLong(PyList_GetItem(list, i));
        if (PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError, "%s: a list of integers is needed", what);
            return false;
        }
        if (one < 0 || one > most) {
            PyErr_Format(PyExc_ValueError, "%s: %lld is outside 0 .. %lld", what, one, static_cast<long long>(most));
            return false;
        }
        found.push_back(one);
    }
    return true;
}

bool is_power_of_two(long long value) { return value > 0 && (value & (value - 1)) == 0; }

PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static const char *names[] = {"fds", "memory", "threads", "block_bytes", "alignment", "least", "apart", "scratch_unit",
                                  "gbps", "device", "dry", nullptr};
    ReaderOptions options;
    PyObject *fds = nullptr, *memory = nullptr;
    int apart = 0, dry = 0;
    long long block = 0, alignment = 1, least = 1, unit = 4096;
    const char *device = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!iLLLpLdz|p", const_cast<char **>(names), &PyList_Type, &fds,
                                     &PyList_Type, &memory, &options.threads, &block, &alignment, &least, &apart, &unit,
                                     &options.gbps, &device, &dry)) {
        return nullptr;
    }
    std::vector<std::int64_t> numbers;
    if (!integers(fds, "fds", INT_MAX, numbers) || !integers(memory, "memory", MOST_UNIT, options.memory)) return nullptr;
    for (const std::int64_t fd : numbers) options.fds.push_back(static_cast<int>(fd));
    if (options.memory.size() != options.fds.size() || options.threads < 1 || options.threads > MOST_THREADS || block < 1 ||
        block > MOST_BLOCK || !is_power_of_two(alignment) || alignment > MOST_UNIT || !is_power_of_two(unit) ||
        unit > MOST_UNIT || least < 1 || !(options.gbps >= 0) || std::isinf(options.gbps)) {
        PyErr_Format(PyExc_ValueError,
                     "threads are 1 .. %d, block_bytes 1 .. 2^60, alignment and scratch_unit powers of two up to 2^30, least at "
                     "least 1, gbps 0 or more, and memory has one entry a file",
                     MOST_THREADS);
        return nullptr;
    }
    options.block_bytes = block;
    options.scratch_unit = unit;
    options.rules = {alignment, least, apart != 0};
    options.dry = dry != 0;
    if (device != nullptr) {
        std::string error;
        options.device.reset(DeviceCopy::open(device, error));
        if (options.device == nullptr) {
            PyErr_Format(PyExc_OSError, "%s: %s", device, error.c_str());
            return nullptr;
        }
    }
    return hold(type, new Reader(std::move(options)));
}

void reader_dealloc(PyObject *self) {
    Reader *reader = held<Reader>(self);
    if (reader != nullptr && !reader->forked()) {
        unlocked([reader] { delete reader; });
    }  // a copy made by fork has no threads to end, and its mutex may be locked: its memory is left
    free_object(self);
}

PyObject *reader_close(PyObject *self, PyObject *args) {
    int drop = 0;
    if (!PyArg_ParseTuple(args, "|p", &drop)) return nullptr;
    Reader *reader = held<Reader>(self);
    if (!reader->forked()) unlocked([reader, drop] { reader->close(drop != 0); });
    Py_RETURN_NONE;
}

// A truth value, or -1 with an exception set; a reader whose threads are in another process cannot be tested.
int test_flag(PyObject *self, PyObject *flag) { return reader_of(self) == nullptr ? -1 : PyObject_IsTrue(flag); }

PyObject *reader_inject(PyObject *self, PyObject *args, PyObject *kwargs) {
    static const char *names[] = {"file", "begin", "end", "error", "most", "delay_s", "times", "skip", nullptr};
    Fault fault;
    long long begin = 0, end = INT64_MAX, most = -1, times = -1;
    int skip = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$iLLiLdLp", const_cast<char **>(names), &fault.file, &begin, &end,
                                     &fault.error, &most, &fault.delay_s, &times, &skip)) {
        return nullptr;
    }
    if (reader_of(self) == nullptr) return nullptr;
    if (!(fault.delay_s >= 0 && fault.delay_s < 1e6)) {
        PyErr_SetString(PyExc_ValueError, "delay_s is 0 to a million");
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
    Reader *reader = reader_of(self);
    if (reader == nullptr) return nullptr;
    reader->faults.heal();
    Py_RETURN_NONE;
}

PyObject *reader_limit(PyObject *self, PyObject *object) {
    const double gbps = PyFloat_AsDouble(object);
    if (PyErr_Occurred() != nullptr || reader_of(self) == nullptr) return nullptr;
    held<Reader>(self)->limit(gbps);
    Py_RETURN_NONE;
}

PyObject *reader_hold(PyObject *self, PyObject *object) {
    const int flag = test_flag(self, object);
    if (flag < 0) return nullptr;
    held<Reader>(self)->faults.hold(flag == 1);
    Py_RETURN_NONE;
}

PyObject *reader_record(PyObject *self, PyObject *object) {
    const int flag = test_flag(self, object);
    if (flag < 0) return nullptr;
    held<Reader>(self)->faults.record(flag == 1);
    Py_RETURN_NONE;
}

PyObject *reader_calls(PyObject *self, PyObject *) {
    Reader *reader = reader_of(self);
    if (reader == nullptr) return nullptr;
    Ref list(PyList_New(0));
    for (const ReadCall &call : reader->faults.calls()) {
        Ref into(PyList_New(0));
        for (const iovec &view : call.into) {
            const auto address = static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(view.iov_base));
            if (!append(into, Py_BuildValue("(Kn)", address, static_cast<Py_ssize_t>(view.iov_len)))) return nullptr;
        }
        if (into.get() == nullptr || !append(list, Py_BuildValue("(iLOO)", call.file, static_cast<long long>(call.offset),
                                                                 into.get(), call.speculative ? Py_True : Py_False))) {
            return nullptr;
        }
    }
    return list.release();
}

PyObject *reader_totals(PyObject *self, void *) {
    const Reader *reader = held<Reader>(self);
    return Py_BuildValue("(LL)", static_cast<long long>(reader->reads()), static_cast<long long>(reader->bytes_read()));
}

PyObject *reader_threads(PyObject *self, void *) { return PyLong_FromLong(held<Reader>(self)->threads()); }

PyObject *reader_closed(PyObject *self, void *) { return PyBool_FromLong(held<Reader>(self)->closed()); }

PyMethodDef READER_METHODS[] = {
    {"submit", method<submit_load>(), METH_VARARGS,
     "submit(ranges, speculative=False): queue one load of ranges [(file number, byte offset, writable buffer)]. The load keeps "
     "the buffers alive."},
    {"close", method<reader_close>(), METH_VARARGS,
     "close(drop=False): finish demand reads (drop: only those that have begun), drop speculative ones, end the threads."},
    {"inject", method<reader_inject>(), METH_VARARGS | METH_KEYWORDS,
     "inject(*, file=-1, begin=0, end=inf, error=0, most=-1, delay_s=0, times=-1, skip=False): for tests, what happens to read "
     "calls that touch these bytes: an errno, at most so many bytes, a delay in s, or success without reading."},
    {"heal", method<reader_heal>(), METH_NOARGS, "Remove all faults."},
    {"limit", method<reader_limit>(), METH_O, "limit(gbps): the bandwidth that reads are held to from now on; 0: none."},
    {"hold", method<reader_hold>(), METH_O, "hold(flag): for tests, let reads wait until hold(False)."},
    {"record", method<reader_record>(), METH_O, "record(flag): for tests, keep a list of the read calls from now on."},
    {"calls", method<reader_calls>(), METH_NOARGS, "The recorded calls: (file, offset, [(address, bytes)], speculative)."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef READER_VALUES[] = {
    {"totals", reader_totals, nullptr, "Blocks read and bytes transferred so far.", nullptr},
    {"threads", Border<reader_threads>::call, nullptr, "Threads that have started.", nullptr},
    {"closed", reader_closed, nullptr, "Whether the reader is closed.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot READER_SLOTS[] = {
    {Py_tp_doc, const_cast<char *>(
                    "Reader(fds, memory, threads, block_bytes, alignment, least, apart, scratch_unit, gbps, device, dry=False): threads "
                    "that read from open files. memory: alignment of destinations by file; device: the CUDA driver's library or None; "
                    "dry: nothing is read, and a load counts its blocks at once.")},
    {Py_tp_new, reinterpret_cast<void *>(Border<reader_new>::call)},
    {Py_tp_dealloc, reinterpret_cast<void *>(reader_dealloc)},
    {Py_tp_methods, READER_METHODS},
    {Py_tp_getset, READER_VALUES},
    {0, nullptr},
};

PyType_Spec READER = {"engine.native._core.Reader", sizeof(Holder<Reader>), 0, Py_TPFLAGS_DEFAULT, READER_SLOTS};

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
    if (PyModule_AddIntConstant(module, "MOST_SPARE", static_cast<long>(MOST_SPARE)) != 0) return false;
    closed_error = PyErr_NewException("engine.native._core.ReaderClosed", nullptr, nullptr);
    if (closed_error == nullptr || PyModule_AddObjectRef(module, "ReaderClosed", closed_error) != 0) return false;
    reader_type = add_type(module, READER);
    return reader_type != nullptr;
}

}  // namespace headrace
