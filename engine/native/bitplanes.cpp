#include "bitplanes.hpp"

#include <cstring>

#include "clones.hpp"

namespace headrace {
namespace {

constexpr std::size_t BLOCK = 1 << 13;  // bytes of codes joined at once if there are more than two streams; in the L1 cache

// The lower half of each code of `bits` bits in a word of 64 bits, or of two words of 24 bits at 6 bits.
constexpr std::uint64_t lower_halves(int bits) {
    std::uint64_t mask = 0;
    for (int at = 0; at < (bits == 6 ? 48 : 64); at += bits) mask |= ((std::uint64_t{1} << (bits / 2)) - 1) << at;
    return mask;
}

template <class T>
inline std::uint64_t load(const std::uint8_t *from) {
    T part;
    std::memcpy(&part, from, sizeof part);
    return part;
}

template <class T>
inline void store(std::uint64_t word, std::uint8_t *to) {
    const T part = static_cast<T>(word);
    std::memcpy(to, &part, sizeof part);
}

using U64 = std::uint64_t;
using U32 = std::uint32_t;
using U16 = std::uint16_t;
using U8 = std::uint8_t;

// Swap the upper halves of the codes in `x` with the lower halves of those in `y`; its own inverse.
template <int BITS>
inline void exchange(std::uint64_t &x, std::uint64_t &y) {
    const std::uint64_t apart = ((x >> (BITS / 2)) ^ y) & lower_halves(BITS);
    y ^= apart;
    x ^= apart << (BITS / 2);
}

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

constexpr std::uint64_t WORD = 0xFFFFFF;  // at 6 bits a word has 24

HEADRACE_CLONES void join_4(const std::uint8_t *upper, const std::uint8_t *lower, std::size_t each, std::uint8_t *out) {
    join_words<4>(upper, lower, each, out);
}

HEADRACE_CLONES void join_8(const std::uint8_t *upper, const std::uint8_t *lower, std::size_t each, std::uint8_t *out) {
    join_words<8>(upper, lower, each, out);
}

// Two words of each stream per step, in the lower 48 bits.
void join_6(const std::uint8_t *upper, const std::uint8_t *lower, std::size_t each, std::uint8_t *out) {
    std::size_t at = 0;
    for (; at + 6 <= each; at += 6) {
        std::uint64_t x = load<U32>(lower + at) | load<U16>(lower + at + 4) << 32;
        std::uint64_t y = load<U32>(upper + at) | load<U16>(upper + at + 4) << 32;
        exchange<6>(x, y);
        const std::uint64_t first = (x & WORD) | (y & WORD) << 24, second = (x >> 24) | (y >> 24) << 24;
        store<U64>(first | second << 48, out + 2 * at);
        store<U32>(second >> 16, out + 2 * at + 8);
    }
    if (at == each) return;
    std::uint64_t x = load<U16>(lower + at) | load<U8>(lower + at + 2) << 16;
    std::uint64_t y = load<U16>(upper + at) | load<U8>(upper + at + 2) << 16;
    exchange<6>(x, y);
    store<U32>(x | y << 24, out + 2 * at);
    store<U16>(y >> 8, out + 2 * at + 4);
}

HEADRACE_CLONES void halve_4(const std::uint8_t *stream, std::size_t each, std::uint8_t *upper, std::uint8_t *lower) {
    halve_words<4>(stream, each, upper, lower);
}

HEADRACE_CLONES void halve_8(const std::uint8_t *stream, std::size_t each, std::uint8_t *upper, std::uint8_t *lower) {
    halve_words<8>(stream, each, upper, lower);
}

void halve_6(const std::uint8_t *stream, std::size_t each, std::uint8_t *upper, std::uint8_t *lower) {
    std::size_t at = 0;
    for (; at + 6 <= each; at += 6) {
        const std::uint64_t first = load<U64>(stream + 2 * at), last = load<U32>(stream + 2 * at + 8);
        const std::uint64_t second = first >> 48 | last << 16;
        std::uint64_t x = (first & WORD) | (second & WORD) << 24;
        std::uint64_t y = (first >> 24 & WORD) | (second >> 24) << 24;
        exchange<6>(x, y);
        store<U32>(x, lower + at);
        store<U16>(x >> 32, lower + at + 4);
        store<U32>(y, upper + at);
        store<U16>(y >> 32, upper + at + 4);
    }
    if (at == each) return;
    const std::uint64_t both = load<U32>(stream + 2 * at) | load<U16>(stream + 2 * at + 4) << 32;
    std::uint64_t x = both & WORD, y = both >> 24;
    exchange<6>(x, y);
    store<U16>(x, lower + at);
    store<U8>(x >> 16, lower + at + 2);
    store<U16>(y, upper + at);
    store<U8>(y >> 16, upper + at + 2);
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
    if (planes == 2) return join_two(streams[0], streams[1], sizes[0], bits, out);
    std::uint8_t joined[BLOCK / 2];
    for (std::size_t at = 0; at < 4 * sizes[0]; at += BLOCK) {
        const std::size_t size = 4 * sizes[0] - at < BLOCK ? 4 * sizes[0] - at : BLOCK;
        join_two(streams[0] + at / 4, streams[1] + at / 4, size / 4, bits / 2, joined);
        join_two(joined, streams[2] + at / 2, size / 2, bits, out + at);
    }
}

void halve_planes(const std::uint8_t *stream, std::size_t size, int bits, std::uint8_t *upper, std::uint8_t *lower) {
    if (bits == 4) halve_4(stream, size / 2, upper, lower);
    if (bits == 6) halve_6(stream, size / 2, upper, lower);
    if (bits == 8) halve_8(stream, size / 2, upper, lower);
}

}  // namespace headrace
