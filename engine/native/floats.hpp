// Floats: bfloat16 and float16 to and from float32, rounded to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

#include "lanes.hpp"

namespace headrace {

enum class Float { f32, f16, bf16 };

constexpr int bytes_of(Float type) { return type == Float::f32 ? 4 : 2; }

HEADRACE_INLINE std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

HEADRACE_INLINE float of_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

HEADRACE_INLINE float from_bf16(std::uint16_t stored) { return of_bits(std::uint32_t{stored} << 16); }

HEADRACE_INLINE std::uint16_t to_bf16(float x) {
    const std::uint32_t bits = bits_of(x);
    return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

HEADRACE_INLINE float from_f16(std::uint16_t stored) {
    const std::uint32_t shifted = (stored & 0x7FFFu) << 13, exponent = shifted & 0x0F800000u;
    const std::uint32_t size = shifted + (exponent == 0x0F800000u ? 0x70000000u : 0x38000000u);
    const float subnormal = of_bits(shifted + 0x38800000u) - of_bits(0x38800000u);
    const std::uint32_t magnitude = exponent == 0 ? bits_of(subnormal) : size;
    return of_bits(magnitude | (stored & 0x8000u) << 16);
}

HEADRACE_INLINE std::uint16_t to_f16(float x) {
    const std::uint32_t sign = bits_of(x) & 0x80000000u;
    std::uint32_t size = bits_of(x) ^ sign, found;
    if (size >= 0x47800000u) {  // 65,536 and above
        found = size > 0x7F800000u ? 0x7E00u : 0x7C00u;
    } else if (size < 0x38800000u) {  // float16 is subnormal below 2^-14: the addition rounds
        found = bits_of(of_bits(size) + of_bits(0x3F000000u)) - 0x3F000000u;
    } else {
        found = (size + 0xC8000FFFu + ((size >> 13) & 1u)) >> 13;
    }
    return static_cast<std::uint16_t>(found | sign >> 16);
}

// The nearest value that `type` has.
HEADRACE_INLINE float rounded(float x, Float type) {
    if (type == Float::bf16) return from_bf16(to_bf16(x));
    return type == Float::f16 ? from_f16(to_f16(x)) : x;
}

HEADRACE_INLINE F8 rounded(F8 x, Float type) {
    if (type == Float::bf16) return of_bits((bits_of(x) + (0x7FFF + ((bits_of(x) >> 16) & 1))) & -0x10000);
    for (int lane = 0; lane < LANES && type == Float::f16; ++lane) x[lane] = from_f16(to_f16(x[lane]));
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
    return type == Float::bf16 ? from_bf16(half) : from_f16(half);
}

HEADRACE_INLINE void store_float(std::uint8_t *to, std::int64_t index, float x, Float type) {
    if (type == Float::f32) {
        std::memcpy(to + 4 * index, &x, sizeof x);
        return;
    }
    const std::uint16_t half = type == Float::bf16 ? to_bf16(x) : to_f16(x);
    std::memcpy(to + 2 * index, &half, sizeof half);
}

}  // namespace headrace
