// Decoding: the weights of a projection as a checkpoint stores them. No function here allocates.
#pragma once
#include <cstdint>

#include "formats/floats.hpp"

namespace headrace {

enum class Format { affine, floats, fp8, mxfp4, mxfp8, nvfp4 };

// One projection of one expert. Rows are contiguous; a weight's number counts along the rows.
struct Source {
    Format format;
    int bits;               // of affine codes
    int group_size;         // of affine codes: 32, 64 or 128
    Float type;             // of affine scales and biases, of floats, and of the factors of FP8
    float zero;             // code of a zero weight, for affine codes without biases
    std::int64_t rows, columns;
    std::int64_t block_rows, block_columns;  // weights with one factor, in FP8
    const std::uint8_t *weights, *scales, *biases;
};

// float32 weights number `begin` to `begin + count`, both multiples of 32 and of the group size.
void decode(const Source &source, std::int64_t begin, std::int64_t count, float *out);

// Scale and bias of affine group number `group`.
HEADRACE_INLINE float affine_scale(const Source &source, std::int64_t group) {
    return stored_float(source.scales, group, source.type);
}
HEADRACE_INLINE float affine_bias(const Source &source, std::int64_t group, float scale) {
    return source.biases != nullptr ? stored_float(source.biases, group, source.type) : scale * -source.zero;
}

}  // namespace headrace
