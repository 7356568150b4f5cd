#include "arrival.hpp"

#include <array>

#include "module.hpp"

namespace headrace {
namespace {

using Table = std::array<std::uint32_t, 256>;

constexpr Table make_table() {
    Table table{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
        table[byte] = value;
    }
    return table;
}

constexpr Table TABLE = make_table();

PyObject *py_crc32(PyObject *, PyObject *args) {
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "y*", &data)) return nullptr;
    const std::uint32_t value = crc32(static_cast<const std::uint8_t *>(data.buf), static_cast<std::size_t>(data.len));
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(value);
}

PyMethodDef FUNCTIONS[] = {
    {"crc32", py_crc32, METH_VARARGS, "The CRC-32 of a buffer, as zlib computes it."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

std::uint32_t crc32(const std::uint8_t *data, std::size_t size, std::uint32_t crc) {
    crc = ~crc;
    for (std::size_t i = 0; i < size; ++i) crc = (crc >> 8) ^ TABLE[(crc ^ data[i]) & 255];
    return ~crc;
}

bool add_arrival(PyObject *module) { return PyModule_AddFunctions(module, FUNCTIONS) == 0; }

}  // namespace headrace
