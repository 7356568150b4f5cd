// The Python type `Reader`, for the files that bind what uses one.
#pragma once
#include "python.hpp"
#include "reading/reader.hpp"

namespace headrace {

// The reader of a Python object. Null with an exception set if it is another object, or belongs to another process.
Reader *reader_of(PyObject *object);
// Sets the exception `ReaderClosed`.
void set_closed();
// A failure as Python sees it: (kind, code, file, byte, section).
PyObject *failure_tuple(const Failure &failure);

}  // namespace headrace
