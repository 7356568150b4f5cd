#include "product/block.hpp"

namespace headrace {

namespace {

typedef float Lanes __attribute__((vector_size(32)));
typedef float Loose __attribute__((vector_size(32), aligned(4), may_alias));  // the same in memory
constexpr int WIDTH = 8, PARTS = ROWS / WIDTH;

inline __attribute__((always_inline)) Lanes load(const float *from) { return *reinterpret_cast<const Loose *>(from); }

inline __attribute__((always_inline)) void store(float *into, Lanes value) { *reinterpret_cast<Loose *>(into) = value; }

template <int columns>
inline __attribute__((always_inline)) void add(const float *left, std::ptrdiff_t step, Right right, std::ptrdiff_t depth,
                                               float *sums) {
    Lanes sum[columns][PARTS];
    for (int j = 0; j < columns; ++j) {
        for (int p = 0; p < PARTS; ++p) sum[j][p] = load(sums + j * ROWS + p * WIDTH);
    }
    const float *b = right.values;
    for (std::ptrdiff_t l = 0; l < depth; ++l, left += step, b += right.down) {
        const Lanes low = load(left), high = load(left + WIDTH);
        for (int j = 0; j < columns; ++j) {
            const float factor = b[j * right.across];
            sum[j][0] += low * factor;  // no fused multiply-add: see FLAGS in setup.py
            sum[j][1] += high * factor;
        }
    }
    for (int j = 0; j < columns; ++j) {
        for (int p = 0; p < PARTS; ++p) store(sums + j * ROWS + p * WIDTH, sum[j][p]);
    }
}

#define HEADRACE_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

// Writes the transpose of 8 rows of 8 values to out[l * ROWS + i].
inline __attribute__((always_inline)) void transpose_square(const float *rows, std::ptrdiff_t step, float *out) {
    Lanes pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        const Lanes a = load(rows + i * step), b = load(rows + (i + 1) * step);
        pairs[i] = HEADRACE_PICK(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
        pairs[i + 1] = HEADRACE_PICK(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int p = 0; p < 2; ++p) {
            fours[i + 2 * p] = HEADRACE_PICK(pairs[i + p], pairs[i + p + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            fours[i + 2 * p + 1] = HEADRACE_PICK(pairs[i + p], pairs[i + p + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int l = 0; l < 4; ++l) {
        store(out + l * ROWS, HEADRACE_PICK(fours[l], fours[l + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        store(out + (l + 4) * ROWS, HEADRACE_PICK(fours[l], fours[l + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

}  // namespace

HEADRACE_CLONES void add_block(const float *left, std::ptrdiff_t step, Right right, std::ptrdiff_t depth, float *sums) {
    add<COLUMNS>(left, step, right, depth, sums);
}

HEADRACE_CLONES void add_column(const float *left, std::ptrdiff_t step, Right right, std::ptrdiff_t depth, float *sums) {
    add<1>(left, step, right, depth, sums);
}

HEADRACE_CLONES void transpose_rows(const float *rows, std::ptrdiff_t step, std::ptrdiff_t depth, float *out) {
    std::ptrdiff_t l = 0;
    for (; l + 8 <= depth; l += 8) {
        for (int p = 0; p < PARTS; ++p) transpose_square(rows + p * WIDTH * step + l, step, out + l * ROWS + p * WIDTH);
    }
    for (; l < depth; ++l) {
        for (int i = 0; i < ROWS; ++i) out[l * ROWS + i] = rows[i * step + l];
    }
}

}  // namespace headrace
