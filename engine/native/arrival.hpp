// Arrival: what happens to an expert's bytes between the file and its slot. No function here uses Python or allocates, and
// none needs aligned memory. Numbers are little-endian, as in the files.
#pragma once
#include <cstddef>
#include <cstdint>

#include "bitplanes.hpp"

namespace headrace {

// CRC-32 as zlib computes it, of `size` bytes, continued from `crc`.
std::uint32_t crc32(const std::uint8_t *data, std::size_t size, std::uint32_t crc = 0);

// Widen `count` codes of bfloat16 or float16 to float32, exactly; NaNs keep their payload. `from` and `to` must not overlap.
void widen_bf16(const std::uint16_t *from, float *to, std::size_t count);
void widen_f16(const std::uint16_t *from, float *to, std::size_t count);

// Set `biases` to minus `zero`, the code of a zero weight, times the scales, rounded to nearest even. The 16-bit types are
// their raw codes. The factor is first rounded to float32, for float16 to float16. `scales` and `biases` must not overlap.
void derive_biases_f32(const float *scales, double zero, float *biases, std::size_t count);
void derive_biases_f16(const std::uint16_t *scales, double zero, std::uint16_t *biases, std::size_t count);
void derive_biases_bf16(const std::uint16_t *scales, double zero, std::uint16_t *biases, std::size_t count);

}  // namespace headrace
