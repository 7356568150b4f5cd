// Halves: 16-bit floats to and from float32, without branches, so that loops over them become vector code. They do what
// numpy and engine/checkpoint/dtypes.py do, NaNs included.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace headrace {

// Element `i` of memory that need not be aligned.
template <class T>
inline T get(const T *memory, std::size_t i) {
    T value;
    std::memcpy(&value, reinterpret_cast<const char *>(memory) + i * sizeof(T), sizeof(T));
    return value;
}

template <class T>
inline void put(T *memory, std::size_t i, T value) {
    std::memcpy(reinterpret_cast<char *>(memory) + i * sizeof(T), &value, sizeof(T));
}

inline float as_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t as_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// `yes` or `no` by masks: gcc turns a conditional operator over sums of floats into branches.
inline std::uint32_t select(bool condition, std::uint32_t yes, std::uint32_t no) {
    const std::uint32_t mask = 0u - std::uint32_t{condition};
    return (yes & mask) | (no & ~mask);
}

inline float bf16_to_float(std::uint16_t code) { return as_float(std::uint32_t{code} << 16); }

// Rounded to nearest even by adding; a NaN is treated as a number and may overflow, as in engine/checkpoint/dtypes.py.
inline std::uint16_t float_to_bf16(float value) {
    const std::uint32_t bits = as_bits(value);
    return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float f16_to_float(std::uint16_t code) {
    constexpr std::uint32_t SMALLEST = 113u << 23;  // 2^-14, the smallest normal float16
    const std::uint32_t rest = (code & 0x7FFFu) << 13, exponent = code & 0x7C00u;
    const std::uint32_t normal = rest + (112u << 23);
    const std::uint32_t subnormal = as_bits(as_float(rest + SMALLEST) - as_float(SMALLEST));
    const std::uint32_t special = rest | 0x7F800000u;  // infinity, NaN
    const std::uint32_t magnitude = select(exponent == 0, subnormal, select(exponent == 0x7C00u, special, normal));
    return as_float(magnitude | (code & 0x8000u) << 16);
}

// Rounded to nearest even; a NaN keeps its upper payload bits and stays a NaN.
inline std::uint16_t float_to_f16(float value) {
    constexpr std::uint32_t INFINITE = 0x7F800000u, TOO_LARGE = 143u << 23, SMALLEST = 113u << 23;  // 2^16, 2^-14
    const std::uint32_t bits = as_bits(value), rest = bits & 0x7FFFFFFFu;
    const std::uint32_t normal = (rest - (112u << 23) + 0xFFF + ((rest >> 13) & 1)) >> 13;
    // One unit of 0.5 is the smallest subnormal: adding 0.5 lets the processor round.
    const std::uint32_t subnormal = as_bits(as_float(rest) + 0.5f) - as_bits(0.5f);
    const std::uint32_t payload = (rest >> 13) & 0x3FF;
    const std::uint32_t nan = 0x7C00u | select(payload == 0, 1, payload);
    const std::uint32_t finite = select(rest < SMALLEST, subnormal, normal);
    const std::uint32_t magnitude = select(rest > INFINITE, nan, select(rest >= TOO_LARGE, 0x7C00u, finite));
    return static_cast<std::uint16_t>(magnitude | (bits >> 16 & 0x8000u));
}

}  // namespace headrace
