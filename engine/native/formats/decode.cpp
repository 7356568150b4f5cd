#include "formats/decode.hpp"

#include <algorithm>
#include <limits>

#include "formats/streams.hpp"

namespace headrace {
namespace {

constexpr int RUN = 128;  // affine codes unpacked at once

// FP8 E4M3 has no infinities (OCP 8-bit floating point specification 1.0).
constexpr float e4m3(int code) {
    const int exponent = (code >> 3) & 15, mantissa = code & 7;
    if ((code & 127) == 127) return std::numeric_limits<float>::quiet_NaN();
    float size = exponent == 0 ? mantissa / 512.0f : 1.0f + mantissa / 8.0f;
    for (int n = exponent; n > 7; --n) size *= 2.0f;
    for (int n = exponent; n != 0 && n < 7; ++n) size /= 2.0f;
    return code < 128 ? size : -size;
}

constexpr float e2m1(int code) {  // OCP MX specification 1.0
    constexpr float sizes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    return code < 8 ? sizes[code & 7] : -sizes[code & 7];
}

constexpr float e8m0(int code) {  // 2^(code - 127); 2^128 is infinite
    if (code == 255) return std::numeric_limits<float>::infinity();
    float size = 1.0f;
    for (int n = code; n > 127; --n) size *= 2.0f;
    for (int n = code; n < 127; ++n) size /= 2.0f;
    return size;
}

struct Pair {
    float first, second;
};

struct Tables {
    float fp8[256], exponent[256];
    Pair fp4[256];  // two codes, the first in the lower bits
};

constexpr Tables make_tables() {
    Tables made{};
    for (int code = 0; code < 256; ++code) {
        made.fp8[code] = e4m3(code);
        made.exponent[code] = e8m0(code);
        made.fp4[code] = {e2m1(code & 15), e2m1(code >> 4)};
    }
    return made;
}

constexpr Tables TABLES = make_tables();

HEADRACE_INLINE void decode_floats(const std::uint8_t *from, Float type, std::int64_t count, float *out) {
    if (type == Float::f32) {
        std::memcpy(out, from, static_cast<std::size_t>(count) * 4);
        return;
    }
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint16_t half;
        std::memcpy(&half, from + 2 * i, sizeof half);
        out[i] = type == Float::bf16 ? bf16_to_float(half) : f16_to_float(half);
    }
}

HEADRACE_INLINE void decode_fp8(const Source &source, std::int64_t begin, std::int64_t count, float *out) {
    const std::int64_t across = (source.columns + source.block_columns - 1) / source.block_columns;
    for (std::int64_t done = 0; done < count;) {
        const std::int64_t row = (begin + done) / source.columns, column = (begin + done) % source.columns;
        const std::int64_t block = column / source.block_columns;
        const std::int64_t end = std::min((block + 1) * source.block_columns, source.columns);
        const std::int64_t length = std::min(end - column, count - done);
        const float factor = stored_float(source.scales, row / source.block_rows * across + block, source.type);
        const std::uint8_t *codes = source.weights + begin + done;
        float *values = out + done;
        for (std::int64_t i = 0; i < length; ++i) values[i] = TABLES.fp8[codes[i]];
        for (std::int64_t i = 0; i < length; ++i) values[i] = rounded(values[i] * factor, Float::bf16);  // as mlx-lm converts it
        done += length;
    }
}

// Blocks of SIZE weights with a factor of one byte each.
template <int SIZE>
HEADRACE_INLINE void decode_blocks(const Source &source, std::int64_t begin, std::int64_t count, float *out) {
    const bool wide = source.format == Format::mxfp8;
    const float *factors = source.format == Format::nvfp4 ? TABLES.fp8 : TABLES.exponent;
    for (std::int64_t at = begin; at < begin + count; at += SIZE, out += SIZE) {
        const float factor = factors[source.scales[at / SIZE]];
        if (wide) {
            for (int i = 0; i < SIZE; ++i) out[i] = TABLES.fp8[source.weights[at + i]];
        } else {
            const std::uint8_t *codes = source.weights + at / 2;
            for (int i = 0; i < SIZE / 2; ++i) std::memcpy(out + 2 * i, &TABLES.fp4[codes[i]], sizeof(Pair));
        }
        for (int i = 0; i < SIZE; ++i) out[i] *= factor;
    }
}

HEADRACE_INLINE void decode_affine(const Source &source, std::int64_t begin, std::int64_t count, float *out) {
    const int size = source.group_size;
    std::uint8_t codes[RUN];
    for (std::int64_t at = begin; at < begin + count; at += size, out += size) {
        const float scale = affine_scale(source, at / size), bias = affine_bias(source, at / size, scale);
        unpack_codes(source.weights + at * source.bits / 8, source.bits, size, codes);
        for (int i = 0; i < size; ++i) out[i] = codes[i] * scale + bias;
    }
}

}  // namespace

HEADRACE_CLONES void decode(const Source &source, std::int64_t begin, std::int64_t count, float *out) {
    switch (source.format) {
        case Format::affine: return decode_affine(source, begin, count, out);
        case Format::floats: return decode_floats(source.weights + begin * bytes_of(source.type), source.type, count, out);
        case Format::fp8: return decode_fp8(source, begin, count, out);
        case Format::nvfp4: return decode_blocks<16>(source, begin, count, out);
        default: return decode_blocks<32>(source, begin, count, out);
    }
}

}  // namespace headrace
