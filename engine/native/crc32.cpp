#include <array>
#include <cstring>

#include "arrival.hpp"
#include "crc32_fold.hpp"

#if defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace headrace {
namespace {

#if defined(__ARM_FEATURE_CRC32)
std::uint32_t advance(const std::uint8_t *data, std::size_t size, std::uint32_t state) {
    for (; size >= 8; size -= 8, data += 8) {
        std::uint64_t word;
        std::memcpy(&word, data, 8);
        state = __crc32d(state, word);
    }
    for (; size > 0; --size, ++data) state = __crc32b(state, *data);
    return state;
}
#else
constexpr int SLICES = 16;  // bytes per step
using Tables = std::array<std::array<std::uint32_t, 256>, SLICES>;

// tables[n][byte]: the contribution of a byte that n further bytes follow.
constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
        tables[0][byte] = value;
    }
    for (int n = 1; n < SLICES; ++n)
        for (int byte = 0; byte < 256; ++byte)
            tables[n][byte] = (tables[n - 1][byte] >> 8) ^ tables[0][tables[n - 1][byte] & 255];
    return tables;
}

constexpr Tables TABLES = make_tables();

std::uint32_t advance(const std::uint8_t *data, std::size_t size, std::uint32_t state) {
    for (; size >= SLICES; size -= SLICES, data += SLICES) {
        std::uint32_t next = 0;
        for (int n = 0; n < SLICES; ++n)
            next ^= TABLES[SLICES - 1 - n][n < 4 ? data[n] ^ ((state >> (8 * n)) & 255) : data[n]];
        state = next;
    }
    for (; size > 0; --size, ++data) state = (state >> 8) ^ TABLES[0][(state ^ *data) & 255];
    return state;
}

#endif

}  // namespace

std::uint32_t crc32(const std::uint8_t *data, std::size_t size, std::uint32_t crc) {
    static const bool folds = can_fold();
    std::uint32_t state = ~crc;
    if (folds && size >= FOLDED) {
        const std::size_t part = size / FOLDED * FOLDED;
        std::uint8_t folded[16];
        fold(data, part, state, folded);
        state = advance(folded, sizeof folded, 0);
        data += part;
        size -= part;
    }
    return ~advance(data, size, state);
}

}  // namespace headrace
