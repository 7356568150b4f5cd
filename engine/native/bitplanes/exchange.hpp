// Exchange: the step that joins and splits bit planes, on words of whole codes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace headrace {

using U64 = std::uint64_t;
using U32 = std::uint32_t;
using U16 = std::uint16_t;
using U8 = std::uint8_t;

// A number of type `T` at memory that need not be aligned.
template <class T>
inline U64 load(const U8 *from) {
    T part;
    std::memcpy(&part, from, sizeof part);
    return part;
}

template <class T>
inline void store(U64 word, U8 *to) {
    const T part = static_cast<T>(word);
    std::memcpy(to, &part, sizeof part);
}

// The lower half of each code of `bits` bits in a word; at 6 bits, of two words of 24 bits.
constexpr U64 lower_halves(int bits) {
    U64 mask = 0;
    for (int at = 0; at < (bits == 6 ? 48 : 64); at += bits) mask |= ((U64{1} << (bits / 2)) - 1) << at;
    return mask;
}

// Swap the upper halves of the codes in `x` with the lower halves of those in `y`; its own inverse. `Word` may be a vector.
template <int BITS, class Word>
inline void exchange(Word &x, Word &y, Word lower) {
    const Word apart = ((x >> (BITS / 2)) ^ y) & lower;
    y ^= apart;
    x ^= apart << (BITS / 2);
}

template <int BITS>
inline void exchange(U64 &x, U64 &y) {
    exchange<BITS, U64>(x, y, lower_halves(BITS));
}

}  // namespace headrace
