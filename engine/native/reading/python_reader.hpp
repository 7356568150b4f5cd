// The Python type `Reader`, for the files that bind what uses one.
#pragma once
#include "python.hpp"
#include "reading/reader.hpp"

namespace headrace {

// The reader of a Python object. Null with an exception set if it is another object, or belongs to another process.
Reader *reader_of(PyObject *object);
// Reader.submit.
PyObject *submit_load(PyObject *self, PyObject *args);
// Sets the exception `ReaderClosed`.
void set_closed();
constexpr long long MOST_OFFSET = 1LL << 62;  // of a range in a file
// A failure as Python sees it: (kind, code, file, byte, section).
PyObject *failure_tuple(const Failure &failure);

}  // namespace headrace
