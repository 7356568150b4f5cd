#include "bitplanes/bitplanes_6.hpp"

#include "bitplanes/exchange.hpp"

// Vectors need a processor that moves bytes by a table: SSSE3, or any 64-bit ARM.
#if defined(__x86_64__)
#define HEADRACE_SHUFFLES __attribute__((target("ssse3")))
#elif defined(__aarch64__)
#define HEADRACE_SHUFFLES
#endif
#if defined(__clang__)
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif

namespace headrace {
namespace {

constexpr U64 WORD = 0xFFFFFF;

// From byte `at` of each stream; two words of each per step, in the lower 48 bits.
void join_rest(const U8 *upper, const U8 *lower, std::size_t each, std::size_t at,
               U8 *out) {
    for (; at + 6 <= each; at += 6) {
        U64 x = load<U32>(lower + at) | load<U16>(lower + at + 4) << 32;
        U64 y = load<U32>(upper + at) | load<U16>(upper + at + 4) << 32;
        exchange<6>(x, y);
        const U64 first = (x & WORD) | (y & WORD) << 24, second = (x >> 24) | (y >> 24) << 24;
        store<U64>(first | second << 48, out + 2 * at);
        store<U32>(second >> 16, out + 2 * at + 8);
    }
    if (at == each) return;
    U64 x = load<U16>(lower + at) | load<U8>(lower + at + 2) << 16;
    U64 y = load<U16>(upper + at) | load<U8>(upper + at + 2) << 16;
    exchange<6>(x, y);
    store<U32>(x | y << 24, out + 2 * at);
    store<U16>(y >> 8, out + 2 * at + 4);
}

void halve_rest(const U8 *stream, std::size_t each, std::size_t at, U8 *upper,
                U8 *lower) {
    for (; at + 6 <= each; at += 6) {
        const U64 first = load<U64>(stream + 2 * at), last = load<U32>(stream + 2 * at + 8);
        const U64 second = first >> 48 | last << 16;
        U64 x = (first & WORD) | (second & WORD) << 24;
        U64 y = (first >> 24 & WORD) | (second >> 24) << 24;
        exchange<6>(x, y);
        store<U32>(x, lower + at);
        store<U16>(x >> 32, lower + at + 4);
        store<U32>(y, upper + at);
        store<U16>(y >> 32, upper + at + 4);
    }
    if (at == each) return;
    const U64 both = load<U32>(stream + 2 * at) | load<U16>(stream + 2 * at + 4) << 32;
    U64 x = both & WORD, y = both >> 24;
    exchange<6>(x, y);
    store<U16>(x, lower + at);
    store<U8>(x >> 16, lower + at + 2);
    store<U16>(y, upper + at);
    store<U8>(y >> 16, upper + at + 2);
}

#ifdef HEADRACE_SHUFFLES
typedef U8 Bytes __attribute__((vector_size(16)));
typedef U32 Words __attribute__((vector_size(16)));  // one word of 24 bits each; the upper byte is not used

constexpr std::size_t STEP = 12;  // bytes of each stream, of which 16 are read and written
constexpr U32 MASK = static_cast<U32>(lower_halves(6) & WORD);

HEADRACE_SHUFFLES inline Bytes load_bytes(const U8 *from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

HEADRACE_SHUFFLES inline void store_words(Words words, U8 *to) {
    const Bytes bytes = reinterpret_cast<Bytes>(words);
    const Bytes close = SHUFFLE(Bytes, bytes, bytes, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    std::memcpy(to, &close, sizeof close);
}

// Each returns the first byte that is left to do.
HEADRACE_SHUFFLES std::size_t join_vectors(const U8 *upper, const U8 *lower, std::size_t each, U8 *out) {
    std::size_t at = 0;
    for (; at + sizeof(Bytes) <= each; at += STEP) {
        const Bytes low = load_bytes(lower + at), high = load_bytes(upper + at);
        Words x = reinterpret_cast<Words>(SHUFFLE(Bytes, low, low, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11));
        Words y = reinterpret_cast<Words>(SHUFFLE(Bytes, high, high, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11));
        exchange<6, Words>(x, y, Words{MASK, MASK, MASK, MASK});
        store_words(SHUFFLE(Words, x, y, 0, 4, 1, 5), out + 2 * at);
        store_words(SHUFFLE(Words, x, y, 2, 6, 3, 7), out + 2 * at + STEP);
    }
    return at;
}

HEADRACE_SHUFFLES std::size_t halve_vectors(const U8 *stream, std::size_t each, U8 *upper, U8 *lower) {
    std::size_t at = 0;
    for (; at + sizeof(Bytes) <= each; at += STEP) {
        const Bytes a = load_bytes(stream + 2 * at), b = load_bytes(stream + 2 * at + STEP);
        const Words first = reinterpret_cast<Words>(SHUFFLE(Bytes, a, a, 0, 1, 2, 2, 6, 7, 8, 8, 3, 4, 5, 5, 9, 10, 11, 11));
        const Words last = reinterpret_cast<Words>(SHUFFLE(Bytes, b, b, 0, 1, 2, 2, 6, 7, 8, 8, 3, 4, 5, 5, 9, 10, 11, 11));
        Words x = SHUFFLE(Words, first, last, 0, 1, 4, 5), y = SHUFFLE(Words, first, last, 2, 3, 6, 7);
        exchange<6, Words>(x, y, Words{MASK, MASK, MASK, MASK});
        store_words(x, lower + at);
        store_words(y, upper + at);
    }
    return at;
}

bool shuffles() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("ssse3");
#else
    return true;
#endif
}
#endif

}  // namespace

void join_6(const U8 *upper, const U8 *lower, std::size_t each, U8 *out) {
    std::size_t done = 0;
#ifdef HEADRACE_SHUFFLES
    if (shuffles()) done = join_vectors(upper, lower, each, out);
#endif
    join_rest(upper, lower, each, done, out);
}

void halve_6(const U8 *stream, std::size_t each, U8 *upper, U8 *lower) {
    std::size_t done = 0;
#ifdef HEADRACE_SHUFFLES
    if (shuffles()) done = halve_vectors(stream, each, upper, lower);
#endif
    halve_rest(stream, each, done, upper, lower);
}

}  // namespace headrace
