// Block: a few columns of a matrix product, every sum in the order of the reference BLAS.
#pragma once
#include <cstddef>
#include <cstring>

#include "arrival/clones.hpp"

namespace headrace {

constexpr int ROWS = 16, COLUMNS = 6;  // of a block: its sums stay in registers

// The right factor: element (l, j) is at values[l * down + j * across].
struct Right {
    const float *values;
    std::ptrdiff_t down, across;
};

// Adds to sums[j][i], one after the other for l = 0 .. depth - 1, left[l * step + i] * right(l, j). ROWS values of `left` are
// read for each l. `add_block` has COLUMNS columns, `add_column` one.
void add_block(const float *left, std::ptrdiff_t step, Right right, std::ptrdiff_t depth, float *sums);
void add_column(const float *left, std::ptrdiff_t step, Right right, std::ptrdiff_t depth, float *sums);

// Writes the transpose of ROWS rows to out[l * ROWS + i] for l = 0 .. depth - 1. Row i begins at rows + i * step.
void transpose_rows(const float *rows, std::ptrdiff_t step, std::ptrdiff_t depth, float *out);

}  // namespace headrace
