// Bit planes: joins and splits streams of packed codes (layout: engine/checkpoint/store/bitplanes.py). No function here
// uses Python or allocates, and none needs aligned memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace headrace {

constexpr int MOST_PLANES = 3;  // 8 bits of 2, 2 and 4

// Whether `planes` streams of these sizes join into codes of `bits` bits: the first two are equal, each later one is as long
// as those before it together, and each step joins whole pairs of words at 4, 6 or 8 bits.
bool planes_fit(const std::size_t *sizes, int planes, int bits);

// Join streams, the upper bits first, into codes of `bits` bits. `out` has room for all of them together and overlaps none.
// The sizes must fit (planes_fit).
void join_planes(const std::uint8_t *const *streams, const std::size_t *sizes, int planes, int bits, std::uint8_t *out);

// Split `size` bytes of codes of 4, 6 or 8 bits into their upper and lower halves of size / 2 bytes, which overlap nothing.
// The size is a multiple of 16 bytes, at 6 bits of 6.
void halve_planes(const std::uint8_t *stream, std::size_t size, int bits, std::uint8_t *upper, std::uint8_t *lower);

}  // namespace headrace
