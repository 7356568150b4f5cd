// Binds staging memory that Python converts: an object that lives as long as its last view.
#include "module.hpp"
#include "pool/python_pool.hpp"

namespace headrace {
namespace {

PyTypeObject *staging_type = nullptr;

struct PythonStaging {
    Buffer memory;
    PyObject *reader;
};

int staging_buffer(PyObject *self, Py_buffer *view, int flags) {
    const Buffer &memory = held<PythonStaging>(self)->memory;
    return PyBuffer_FillInfo(view, self, memory.data(), static_cast<Py_ssize_t>(memory.size()), 1, flags);
}

void staging_dealloc(PyObject *self) {
    PythonStaging *made = held<PythonStaging>(self);
    if (made != nullptr) {
        Reader *reader = held<Reader>(made->reader);
        if (!reader->forked()) reader->give_buffer(std::move(made->memory));
        Py_DECREF(made->reader);
        delete made;
    }
    free_object(self);
}

PyType_Slot SLOTS[] = {
    {Py_tp_doc, const_cast<char *>("Bytes of an expert, as Pool.staging gives them.")},
    {Py_tp_dealloc, reinterpret_cast<void *>(staging_dealloc)},
    {Py_bf_getbuffer, reinterpret_cast<void *>(staging_buffer)},
    {0, nullptr},
};

PyType_Spec SPEC = {"engine.native._core.Staging", sizeof(Holder<PythonStaging>), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, SLOTS};

}  // namespace

PyObject *staging_view(Buffer memory, PyObject *reader) {
    auto made = std::make_unique<PythonStaging>();
    made->memory = std::move(memory);
    made->reader = reader;
    const Ref object(hold(staging_type, made.release()));
    if (object.get() == nullptr) return nullptr;
    Py_INCREF(reader);
    return PyMemoryView_FromObject(object.get());
}

bool add_staging(PyObject *module) {
    staging_type = add_type(module, SPEC);
    return staging_type != nullptr;
}

}  // namespace headrace
