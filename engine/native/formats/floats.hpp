// Floats: the stored types of weights, scales and biases, rounded to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

#include "bitplanes/halves.hpp"
#include "formats/lanes.hpp"

namespace headrace {

enum class Float { f32, f16, bf16 };

constexpr int bytes_of(Float type) { return type == Float::f32 ? 4 : 2; }

// The nearest value that `type` has.
HEADRACE_INLINE float rounded(float x, Float type) {
    if (type == Float::bf16) return bf16_to_float(float_to_bf16(x));
    return type == Float::f16 ? f16_to_float(float_to_f16(x)) : x;
}

HEADRACE_INLINE F8 rounded(F8 x, Float type) {
    if (type == Float::bf16) return of_bits((bits_of(x) + (0x7FFF + ((bits_of(x) >> 16) & 1))) & -0x10000);
    for (int lane = 0; lane < LANES && type == Float::f16; ++lane) x[lane] = f16_to_float(float_to_f16(x[lane]));
    return x;
}

// Value number `index` of a stored array.
HEADRACE_INLINE float stored_float(const std::uint8_t *from, std::int64_t index, Float type) {
    if (type == Float::f32) {
        float x;
        std::memcpy(&x, from + 4 * index, sizeof x);
        return x;
    }
    std::uint16_t half;
    std::memcpy(&half, from + 2 * index, sizeof half);
    return type == Float::bf16 ? bf16_to_float(half) : f16_to_float(half);
}

HEADRACE_INLINE void store_float(std::uint8_t *to, std::int64_t index, float x, Float type) {
    if (type == Float::f32) {
        std::memcpy(to + 4 * index, &x, sizeof x);
        return;
    }
    const std::uint16_t half = type == Float::bf16 ? float_to_bf16(x) : float_to_f16(x);
    std::memcpy(to + 2 * index, &half, sizeof half);
}

}  // namespace headrace
