#include "bitplanes/bitplanes.hpp"

#include <cstring>

#include "bitplanes/bitplanes_6.hpp"
#include "arrival/clones.hpp"
#include "bitplanes/exchange.hpp"

namespace headrace {
namespace {

constexpr std::size_t BLOCK = 12 << 10;  // bytes of codes joined at once, whole words of any width; in the L1 cache

template <int BITS>
inline void join_words(const std::uint8_t *upper, const std::uint8_t *lower, std::size_t each, std::uint8_t *out) {
    for (std::size_t at = 0; at < each; at += 8) {
        std::uint64_t x = load<U64>(lower + at), y = load<U64>(upper + at);
        exchange<BITS>(x, y);
        store<U64>(x, out + 2 * at);
        store<U64>(y, out + 2 * at + 8);
    }
}

template <int BITS>
inline void halve_words(const std::uint8_t *stream, std::size_t each, std::uint8_t *upper, std::uint8_t *lower) {
    for (std::size_t at = 0; at < each; at += 8) {
        std::uint64_t x = load<U64>(stream + 2 * at), y = load<U64>(stream + 2 * at + 8);
        exchange<BITS>(x, y);
        store<U64>(x, lower + at);
        store<U64>(y, upper + at);
    }
}

HEADRACE_CLONES void join_4(const std::uint8_t *upper, const std::uint8_t *lower, std::size_t each, std::uint8_t *out) {
    join_words<4>(upper, lower, each, out);
}

HEADRACE_CLONES void join_8(const std::uint8_t *upper, const std::uint8_t *lower, std::size_t each, std::uint8_t *out) {
    join_words<8>(upper, lower, each, out);
}

HEADRACE_CLONES void halve_4(const std::uint8_t *stream, std::size_t each, std::uint8_t *upper, std::uint8_t *lower) {
    halve_words<4>(stream, each, upper, lower);
}

HEADRACE_CLONES void halve_8(const std::uint8_t *stream, std::size_t each, std::uint8_t *upper, std::uint8_t *lower) {
    halve_words<8>(stream, each, upper, lower);
}

void join_two(const std::uint8_t *upper, const std::uint8_t *lower, std::size_t each, int bits, std::uint8_t *out) {
    if (bits == 4) join_4(upper, lower, each, out);
    if (bits == 6) join_6(upper, lower, each, out);
    if (bits == 8) join_8(upper, lower, each, out);
}

}  // namespace

bool planes_fit(const std::size_t *sizes, int planes, int bits) {
    if (planes < 2 || (bits != 4 && bits != 6 && bits != 8) || planes > (bits == 8 ? MOST_PLANES : 2)) return false;
    if (sizes[0] != sizes[1] || sizes[0] % (bits == 6 ? 3 : 8) != 0) return false;
    return planes == 2 || (sizes[0] <= SIZE_MAX / 4 && sizes[2] == 2 * sizes[0]);
}

void join_planes(const std::uint8_t *const *streams, const std::size_t *sizes, int planes, int bits, std::uint8_t *out) {
    const std::size_t all = (planes == 2 ? 2 : 4) * sizes[0];
    std::uint8_t upper[BLOCK / 2], codes[BLOCK];
    for (std::size_t at = 0; at < all; at += BLOCK) {
        const std::size_t size = all - at < BLOCK ? all - at : BLOCK;
        if (planes == 2) {
            join_two(streams[0] + at / 2, streams[1] + at / 2, size / 2, bits, codes);
        } else {
            join_two(streams[0] + at / 4, streams[1] + at / 4, size / 4, bits / 2, upper);
            join_two(upper, streams[2] + at / 2, size / 2, bits, codes);
        }
        std::memcpy(out + at, codes, size);  // does not read the destination's lines into the cache first, as stores do
    }
}

void halve_planes(const std::uint8_t *stream, std::size_t size, int bits, std::uint8_t *upper, std::uint8_t *lower) {
    if (bits == 4) halve_4(stream, size / 2, upper, lower);
    if (bits == 6) halve_6(stream, size / 2, upper, lower);
    if (bits == 8) halve_8(stream, size / 2, upper, lower);
}

}  // namespace headrace
