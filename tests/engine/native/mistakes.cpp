// Mistakes: bugs that the sanitizers must report. Only the builds of `make sanitize` have them; see tests/sanitize.py.
#include "module.hpp"

#include <climits>
#include <string>
#include <thread>

namespace headrace {
namespace {

volatile int place = 1;  // volatile, so that no compiler sees the mistake
int shared = 0;

int overrun() {
    int *volatile values = new int[4]();
    const int value = values[3 + place];
    delete[] values;
    return value;
}

int use_after_free() {
    int *volatile values = new int[4]();
    delete[] values;
    return values[place];
}

int overflow() { return INT_MAX - 1 + place + place; }

int leak() {
    char *volatile lost = new char[4321]();
    return lost[place];
}

int race() {
    auto count = [] {
        for (int i = 0; i < 10000; ++i) ++shared;
    };
    std::thread first(count), second(count);
    first.join();
    second.join();
    return shared;
}

PyObject *py_mistake(PyObject *, PyObject *args) {
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name)) return nullptr;
    const std::string wanted = name;
    if (wanted == "overrun") return PyLong_FromLong(overrun());
    if (wanted == "use after free") return PyLong_FromLong(use_after_free());
    if (wanted == "overflow") return PyLong_FromLong(overflow());
    if (wanted == "leak") return PyLong_FromLong(leak());
    if (wanted == "race") return PyLong_FromLong(race());
    PyErr_SetString(PyExc_ValueError, "no such mistake");
    return nullptr;
}

PyMethodDef FUNCTIONS[] = {
    {"mistake", py_mistake, METH_VARARGS, "Make the mistake of that name."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_mistakes(PyObject *module) { return PyModule_AddFunctions(module, FUNCTIONS) == 0; }

}  // namespace headrace
