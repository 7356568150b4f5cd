// Bit planes of 6-bit codes, whose words have 3 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace headrace {

// Join two streams of `each` bytes, a multiple of 3, and split a stream into two; see bitplanes.hpp.
void join_6(const std::uint8_t *upper, const std::uint8_t *lower, std::size_t each, std::uint8_t *out);
void halve_6(const std::uint8_t *stream, std::size_t each, std::uint8_t *upper, std::uint8_t *lower);

}  // namespace headrace
