// Arrival: what happens to an expert's bytes between the file and its slot. No function here uses Python or allocates.
#pragma once
#include <cstddef>
#include <cstdint>

namespace headrace {

// CRC-32 as zlib computes it, of `size` bytes, continued from `crc`.
std::uint32_t crc32(const std::uint8_t *data, std::size_t size, std::uint32_t crc = 0);

}  // namespace headrace
