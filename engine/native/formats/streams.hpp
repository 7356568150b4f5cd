// Streams: codes of any width in MLX's bit order, one little-endian run of bits.
#pragma once
#include <cstdint>

namespace headrace {

// The codes of a stream, one a byte. `count` is a multiple of 32; `bits` is 2, 3, 4, 5, 6 or 8.
void unpack_codes(const std::uint8_t *stream, int bits, std::int64_t count, std::uint8_t *codes);

// The inverse of `unpack_codes` for 4, 6 and 8 bits.
void pack_codes(const std::uint8_t *codes, int bits, std::int64_t count, std::uint8_t *stream);

}  // namespace headrace
