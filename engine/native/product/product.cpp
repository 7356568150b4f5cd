// Product: a matrix product with the sums of the reference BLAS, to the last bit, several at a time.
//
// MLX's wheel for Linux brings the reference BLAS, which adds one term after the other with scalar instructions. The order
// within a sum is all that determines its bits, so sums that are computed side by side come out the same.
#include "product/product.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "product/block.hpp"

namespace headrace {

namespace {

constexpr int COLUMN_MAJOR = 102, PLAIN = 111;  // of cblas.h
constexpr std::ptrdiff_t SLICE = 64;            // rows of the left factor that are transposed at a time for few columns

// A product C = alpha * left * right + beta * C in column-major order: `rows` x `columns`, sums of `depth` terms.
struct Product {
    std::ptrdiff_t rows, columns, depth;
    float alpha, beta;
    const float *left;
    std::ptrdiff_t left_step;
    bool left_transposed;
    Right right;
    float *out;
    std::ptrdiff_t out_step;

    // With a plain left factor the reference adds alpha * right * left to beta * C; with a transposed one it multiplies the
    // sum by alpha, and adds beta * C last.
    void begin(std::ptrdiff_t i, std::ptrdiff_t j, int rows_here, int columns_here, float *sums) const {
        std::fill(sums, sums + ROWS * COLUMNS, 0.0f);
        if (left_transposed || beta == 0) return;
        for (int c = 0; c < columns_here; ++c) {
            const float *from = out + (j + c) * out_step + i;
            for (int r = 0; r < rows_here; ++r) sums[c * ROWS + r] = beta == 1 ? from[r] : beta * from[r];
        }
    }

    void end(std::ptrdiff_t i, std::ptrdiff_t j, int rows_here, int columns_here, const float *sums) const {
        for (int c = 0; c < columns_here; ++c) {
            float *into = out + (j + c) * out_step + i;
            for (int r = 0; r < rows_here; ++r) {
                const float sum = sums[c * ROWS + r];
                if (!left_transposed) into[r] = sum;
                else into[r] = beta == 0 ? alpha * sum : alpha * sum + beta * into[r];
            }
        }
    }

    // Writes the left factor's rows i .. i + ROWS, columns l .. l + count, to panel[l][row]; rows that do not exist are 0.
    void pack(std::ptrdiff_t i, int rows_here, std::ptrdiff_t l, std::ptrdiff_t count, float *panel) const {
        if (left_transposed && rows_here == ROWS) return transpose_rows(left + i * left_step + l, left_step, count, panel);
        for (std::ptrdiff_t k = 0; k < count; ++k) {
            for (int r = 0; r < ROWS; ++r) {
                const std::ptrdiff_t at = left_transposed ? (i + r) * left_step + l + k : (l + k) * left_step + i + r;
                panel[k * ROWS + r] = r < rows_here ? left[at] : 0.0f;
            }
        }
    }

    Right from(std::ptrdiff_t l, std::ptrdiff_t j) const {
        return {right.values + l * right.down + j * right.across, right.down, right.across};
    }

    void add(const float *panel, std::ptrdiff_t step, Right b, std::ptrdiff_t count, int columns_here, float *sums) const {
        if (columns_here == COLUMNS) return add_block(panel, step, b, count, sums);
        for (int c = 0; c < columns_here; ++c) {
            add_column(panel, step, {b.values + c * b.across, b.down, b.across}, count, sums + c * ROWS);
        }
    }

    void compute() const {
        std::vector<float> panel;
        float sums[ROWS * COLUMNS];
        const bool few = columns <= COLUMNS;  // each part of the panel is used once, while it is in the nearest cache
        for (std::ptrdiff_t i = 0; i < rows; i += ROWS) {
            const int rows_here = static_cast<int>(std::min<std::ptrdiff_t>(ROWS, rows - i));
            const bool direct = !left_transposed && rows_here == ROWS;
            const std::ptrdiff_t slice = direct ? depth : few ? std::min(depth, SLICE) : depth;
            if (!direct) {
                panel.resize(static_cast<std::size_t>(slice) * ROWS);
                if (!few) pack(i, rows_here, 0, depth, panel.data());
            }
            for (std::ptrdiff_t j = 0; j < columns; j += COLUMNS) {
                const int columns_here = static_cast<int>(std::min<std::ptrdiff_t>(COLUMNS, columns - j));
                begin(i, j, rows_here, columns_here, sums);
                for (std::ptrdiff_t l = 0; l < depth; l += slice) {
                    const std::ptrdiff_t count = std::min(slice, depth - l);
                    if (!direct && few) pack(i, rows_here, l, count, panel.data());
                    if (direct) add(left + l * left_step + i, left_step, from(l, j), count, columns_here, sums);
                    else add(panel.data(), ROWS, from(l, j), count, columns_here, sums);
                }
                end(i, j, rows_here, columns_here, sums);
            }
        }
    }
};

}  // namespace

void sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
           int ldb, float beta, float *c, int ldc) {
    if (order != COLUMN_MAJOR) {  // the transposed product in column-major order
        std::swap(trans_a, trans_b);
        std::swap(m, n);
        std::swap(a, b);
        std::swap(lda, ldb);
    }
    if (m <= 0 || n <= 0 || ((alpha == 0 || k <= 0) && beta == 1)) return;
    if (alpha == 0 || k <= 0) {
        for (std::ptrdiff_t j = 0; j < n; ++j) {
            float *column = c + j * static_cast<std::ptrdiff_t>(ldc);
            for (int i = 0; i < m; ++i) column[i] = beta == 0 ? 0.0f : beta * column[i];
        }
        return;
    }
    const bool a_transposed = trans_a != PLAIN, b_transposed = trans_b != PLAIN;
    Right right = b_transposed ? Right{b, ldb, 1} : Right{b, 1, ldb};
    std::vector<float> scaled;
    if (alpha != 1 && !a_transposed) {  // the reference multiplies each element of the right factor by alpha first
        scaled.resize(static_cast<std::size_t>(k) * static_cast<std::size_t>(n));
        for (std::ptrdiff_t j = 0; j < n; ++j) {
            for (std::ptrdiff_t l = 0; l < k; ++l) scaled[j * k + l] = alpha * right.values[l * right.down + j * right.across];
        }
        right = {scaled.data(), 1, k};
    }
    Product{m, n, k, alpha, beta, a, lda, a_transposed, right, c, ldc}.compute();
}

}  // namespace headrace
