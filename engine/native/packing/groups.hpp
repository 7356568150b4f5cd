// Groups: a batch of quantization groups at the highest level, small enough for the first cache of a core.
#pragma once
#include <cstdint>

#include "formats/decode.hpp"

namespace headrace {

constexpr int BATCH = 1024;         // weights
constexpr int GROUPS = BATCH / 32;  // at most, in a batch
constexpr int LEVELS = 3;           // at most, in a record

// A weight is low + unit * v. The sums are those of v and of the upper bits h of the codes at each lower level.
struct Groups {
    int count, size;
    std::int64_t number[GROUPS];  // of each group in the projection
    std::uint8_t codes[BATCH];
    float unit[GROUPS], low[GROUPS];
    float step[GROUPS];                // between codes, in units of v
    float scale[GROUPS], bias[GROUPS];  // rounded to the stored type
    float error[GROUPS];               // squared, of the highest level
    float v[GROUPS], vv[GROUPS];
    float h[LEVELS - 1][GROUPS], hh[LEVELS - 1][GROUPS], vh[LEVELS - 1][GROUPS];
};

// The highest width, and how many bits each lower level lacks.
struct Widths {
    int top, lower;
    int below[LEVELS - 1];
};

// The functions below fill `groups`, which has its count, its size and its numbers.

// The source's own codes, widened to `widths.top` bits, of groups with consecutive numbers.
void keep_codes(const Source &source, const Widths &widths, Groups &groups);

// Codes and grids as mx.quantize computes them, for float32 weights. False if a weight is not finite.
bool on_mlx_grid(const float *weights, const Widths &widths, Float type, Groups &groups);

// Codes of 4 bits that are good at 2 bits too (engine/packing/quantize.py). `mlx_error` receives the groups' squared errors on
// the grid of mx.quantize. False if a weight is not finite.
bool on_shaped_grid(const float *weights, Float type, Groups &groups, float *mlx_error);

}  // namespace headrace
