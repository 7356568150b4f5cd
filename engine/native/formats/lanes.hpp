// Lanes: eight float32 values at once, on any CPU, and the versions of a function for wider vector instructions.
//
// Every sum runs over the same eight lanes in the same order, and setup.py forbids fused multiply-add. So results do not
// depend on the CPU, on the width of its vectors or on the compiler.
#pragma once
#include <cstdint>
#include <cstring>

#include "arrival/clones.hpp"

#define HEADRACE_INLINE inline __attribute__((always_inline))

namespace headrace {

constexpr int LANES = 8;
typedef float F8 __attribute__((vector_size(32)));
typedef std::int32_t I8 __attribute__((vector_size(32)));

HEADRACE_INLINE F8 load(const float *from) {
    F8 x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

HEADRACE_INLINE void store(float *to, F8 x) { std::memcpy(to, &x, sizeof x); }

HEADRACE_INLINE I8 load(const std::int32_t *from) {
    I8 x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

HEADRACE_INLINE void store(std::int32_t *to, I8 x) { std::memcpy(to, &x, sizeof x); }

HEADRACE_INLINE I8 bits_of(F8 x) {
    I8 bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

HEADRACE_INLINE F8 of_bits(I8 bits) {
    F8 x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

HEADRACE_INLINE F8 size_of(F8 x) { return of_bits(bits_of(x) & 0x7FFFFFFF); }

HEADRACE_INLINE F8 all(float x) { return F8{x, x, x, x, x, x, x, x}; }

// The second argument where the first is not a number.
HEADRACE_INLINE F8 least(F8 x, F8 y) { return x < y ? x : y; }
HEADRACE_INLINE F8 most(F8 x, F8 y) { return x > y ? x : y; }

// The nearest integers, ties to even, of values from -2^22 to 2^22: float32 has no room for fractions above 2^23.
HEADRACE_INLINE F8 nearest(F8 x) { return (x + 12582912.0f) - 12582912.0f; }

// The lanes are added (or compared) in this order: 0 with 4, 1 with 5 and so on, then 0 with 2 and 1 with 3, then 0 with 1.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HEADRACE_FOLD(x, op)                                                                             \
    typedef float F4 __attribute__((vector_size(16)));                                                   \
    const F4 a = __builtin_shufflevector(x, x, 0, 1, 2, 3), b = __builtin_shufflevector(x, x, 4, 5, 6, 7), c = op(a, b); \
    const F4 d = op(c, (F4)__builtin_shufflevector(c, c, 2, 3, 2, 3));                                       \
    return op(d[0], d[1]);
#endif
#endif
#ifndef HEADRACE_FOLD
#define HEADRACE_FOLD(x, op)                                                                             \
    const float a = op(x[0], x[4]), b = op(x[1], x[5]), c = op(x[2], x[6]), d = op(x[3], x[7]);              \
    return op(op(a, c), op(b, d));
#endif
#define HEADRACE_ADD(x, y) ((x) + (y))
#define HEADRACE_LEAST(x, y) ((x) < (y) ? (x) : (y))
#define HEADRACE_MOST(x, y) ((x) > (y) ? (x) : (y))
HEADRACE_INLINE float total(F8 x) { HEADRACE_FOLD(x, HEADRACE_ADD) }
HEADRACE_INLINE float smallest(F8 x) { HEADRACE_FOLD(x, HEADRACE_LEAST) }
HEADRACE_INLINE float largest(F8 x) { HEADRACE_FOLD(x, HEADRACE_MOST) }
#undef HEADRACE_FOLD
#undef HEADRACE_ADD
#undef HEADRACE_LEAST
#undef HEADRACE_MOST

}  // namespace headrace
