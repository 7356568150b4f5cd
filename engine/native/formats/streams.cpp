#include "formats/streams.hpp"

#include <cstring>

#include "formats/lanes.hpp"

namespace headrace {
namespace {

// Eight codes are BITS bytes, in a number of 64 bits.
template <int BITS>
HEADRACE_INLINE void unpack_eights(const std::uint8_t *stream, std::int64_t count, std::uint8_t *codes) {
    for (std::int64_t i = 0; i < count; i += 8, stream += BITS) {
        std::uint64_t word = 0;
        std::memcpy(&word, stream, BITS);
        for (int n = 0; n < 8; ++n) codes[i + n] = word >> (n * BITS) & ((1 << BITS) - 1);
    }
}

HEADRACE_INLINE void pack_fours(const std::uint8_t *codes, std::int64_t count, std::uint8_t *stream) {
    for (std::int64_t i = 0; i < count / 2; ++i) {
        std::uint16_t pair;
        std::memcpy(&pair, codes + 2 * i, sizeof pair);
        stream[i] = static_cast<std::uint8_t>(pair | pair >> 4);
    }
}

HEADRACE_INLINE void pack_sixes(const std::uint8_t *codes, std::int64_t count, std::uint8_t *stream) {
    for (std::int64_t i = 0; i < count; i += 4, stream += 3) {
        const std::uint32_t word = codes[i] | codes[i + 1] << 6 | codes[i + 2] << 12 | codes[i + 3] << 18;
        std::memcpy(stream, &word, 3);
    }
}

}  // namespace

HEADRACE_CLONES void unpack_codes(const std::uint8_t *stream, int bits, std::int64_t count, std::uint8_t *codes) {
    switch (bits) {
        case 2: return unpack_eights<2>(stream, count, codes);
        case 3: return unpack_eights<3>(stream, count, codes);
        case 4:
            for (std::int64_t i = 0; i < count / 2; ++i) {
                codes[2 * i] = stream[i] & 15;
                codes[2 * i + 1] = stream[i] >> 4;
            }
            return;
        case 5: return unpack_eights<5>(stream, count, codes);
        case 6: return unpack_eights<6>(stream, count, codes);
        default: std::memcpy(codes, stream, static_cast<std::size_t>(count));
    }
}

HEADRACE_CLONES void pack_codes(const std::uint8_t *codes, int bits, std::int64_t count, std::uint8_t *stream) {
    if (bits == 4) return pack_fours(codes, count, stream);
    if (bits == 6) return pack_sixes(codes, count, stream);
    std::memcpy(stream, codes, static_cast<std::size_t>(count));
}

}  // namespace headrace
