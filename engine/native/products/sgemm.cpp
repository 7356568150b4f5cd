#include "products/sgemm.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include "arrival/clones.hpp"
#include "formats/lanes.hpp"

#define HEADRACE_UNROLL _Pragma("GCC unroll 8")  // so that the sums stay in registers

namespace headrace {
namespace {

constexpr int WIDE = 16;  // columns of a vector
constexpr int VECTORS = 4, PANEL = WIDE * VECTORS;
constexpr int ROWS = 6;    // of a block: with AVX2, its sums take 12 of 16 registers
constexpr long MANY = 32;  // rows of a: then it pays to copy b in the order of its use

typedef float F16 __attribute__((vector_size(64)));

struct Panel {
    const float *values;
    long row;      // from one row to the next
    long columns;  // the others are zero
};

struct Target {
    float alpha, beta;
    bool scaled_last;  // the second order, see sgemm.hpp
};

HEADRACE_INLINE F16 load16(const float *from) {
    F16 x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

// `columns` results, from the sums of their terms in the second order, else from the sums that began with beta * c.
HEADRACE_INLINE void finish(F16 sum, const Target &target, float *c, long columns) {
    float out[WIDE];
    if (target.scaled_last) sum = target.alpha * sum;
    std::memcpy(out, &sum, sizeof out);
    for (long j = 0; target.scaled_last && target.beta != 0 && j < columns; ++j) out[j] += target.beta * c[j];
    std::memcpy(c, out, columns * sizeof(float));
}

HEADRACE_INLINE F16 beginning(const Target &target, const float *c, long columns) {
    F16 begin = {};
    if (target.scaled_last || target.beta == 0) return begin;
    std::memcpy(&begin, c, columns * sizeof(float));
    return target.beta == 1 ? begin : target.beta * begin;
}

// R rows of a times V vectors of a panel.
template <int R, int V, bool SCALED>
HEADRACE_INLINE void tile(long k, const Operand &a, const float *b, long row, const Target &target, float *c, long ldc,
                          long columns) {
    F16 sums[R][V];
    long each[V];
    HEADRACE_UNROLL for (int v = 0; v < V; ++v) each[v] = std::clamp(columns - v * WIDE, 0L, static_cast<long>(WIDE));
    HEADRACE_UNROLL for (int r = 0; r < R; ++r)
        HEADRACE_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = beginning(target, c + r * ldc + v * WIDE, each[v]);
    const long rows = a.rows(), columns_apart = a.columns();
    for (long l = 0; l < k; ++l) {
        F16 right[V];
        HEADRACE_UNROLL for (int v = 0; v < V; ++v) right[v] = load16(b + l * row + v * WIDE);
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            const float value = a.values[r * rows + l * columns_apart], left = SCALED ? target.alpha * value : value;
            HEADRACE_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = sums[r][v] + left * right[v];
        }
    }
    HEADRACE_UNROLL for (int r = 0; r < R; ++r)
        HEADRACE_UNROLL for (int v = 0; v < V; ++v)
            if (each[v] > 0) finish(sums[r][v], target, c + r * ldc + v * WIDE, each[v]);
}

typedef float F4 __attribute__((vector_size(16)));
#ifdef __clang__
#define HEADRACE_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
typedef int I4 __attribute__((vector_size(16)));
#define HEADRACE_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, I4{__VA_ARGS__})
#endif

// Four values of each of four columns, to four rows of a panel.
HEADRACE_INLINE void transpose_4(const float *from, long apart, float *to) {
    F4 w, x, y, z;
    std::memcpy(&w, from, sizeof w);
    std::memcpy(&x, from + apart, sizeof x);
    std::memcpy(&y, from + 2 * apart, sizeof y);
    std::memcpy(&z, from + 3 * apart, sizeof z);
    const F4 low = HEADRACE_SHUFFLE(w, x, 0, 4, 1, 5), high = HEADRACE_SHUFFLE(w, x, 2, 6, 3, 7);
    const F4 low_2 = HEADRACE_SHUFFLE(y, z, 0, 4, 1, 5), high_2 = HEADRACE_SHUFFLE(y, z, 2, 6, 3, 7);
    const F4 rows[4] = {HEADRACE_SHUFFLE(low, low_2, 0, 1, 4, 5), HEADRACE_SHUFFLE(low, low_2, 2, 3, 6, 7),
                        HEADRACE_SHUFFLE(high, high_2, 0, 1, 4, 5), HEADRACE_SHUFFLE(high, high_2, 2, 3, 6, 7)};
    HEADRACE_UNROLL for (int r = 0; r < 4; ++r) std::memcpy(to + r * PANEL, rows + r, sizeof rows[r]);
}

// `columns` by `rows` values, of which `rows` are adjacent, as a panel.
HEADRACE_INLINE void transpose(const float *from, long apart, long columns, long rows, float *to) {
    const long even = rows / 4 * 4;
    long j = 0;
    for (; j + 4 <= columns; j += 4)
        for (long l = 0; l < even; l += 4) transpose_4(from + j * apart + l, apart, to + l * PANEL + j);
    for (long x = 0; x < columns; ++x)
        for (long l = x < j ? even : 0; l < rows; ++l) to[l * PANEL + x] = from[x * apart + l];
}

// The columns of b from `first` as a panel; in `room` unless they are adjacent, and as many as a panel has, and `near`.
HEADRACE_INLINE Panel panel_of(const Operand &b, long k, long n, long first, bool near, float *room) {
    const long columns = std::min<long>(PANEL, n - first);
    const float *from = b.values + first * b.columns();
    if (columns == PANEL && !b.transposed && near) return {from, b.apart, columns};
    if (columns < PANEL) std::memset(room, 0, k * PANEL * sizeof(float));
    if (b.transposed) {
        transpose(from, b.apart, columns, k, room);
    } else {
        for (long l = 0; l < k; ++l) std::memcpy(room + l * PANEL, from + l * b.apart, columns * sizeof(float));
    }
    return {room, PANEL, columns};
}

template <bool SCALED>
HEADRACE_INLINE void multiply(long m, long n, long k, const Operand &a, const Operand &b, const Target &target, float *c,
                              long ldc, float *room) {
    for (long first = 0; first < n; first += PANEL) {
        const Panel panel = panel_of(b, k, n, first, m < MANY, room);
        long i = 0;
        for (; i + ROWS <= m; i += ROWS) {
            const Operand rows{a.values + i * a.rows(), a.apart, a.transposed};
            float *out = c + i * ldc + first;
            for (long j = 0; j < panel.columns; j += WIDE)
                tile<ROWS, 1, SCALED>(k, rows, panel.values + j, panel.row, target, out + j, ldc, panel.columns - j);
        }
        for (; i < m; ++i) {
            const Operand row{a.values + i * a.rows(), a.apart, a.transposed};
            tile<1, VECTORS, SCALED>(k, row, panel.values, panel.row, target, c + i * ldc + first, ldc, panel.columns);
        }
    }
}

HEADRACE_CLONES void plain(long m, long n, long k, const Operand &a, const Operand &b, const Target &target, float *c,
                           long ldc, float *room) {
    multiply<false>(m, n, k, a, b, target, c, ldc, room);
}

HEADRACE_CLONES void scaled(long m, long n, long k, const Operand &a, const Operand &b, const Target &target, float *c,
                            long ldc, float *room) {
    multiply<true>(m, n, k, a, b, target, c, ldc, room);
}

}  // namespace

void sgemm(long m, long n, long k, float alpha, Operand a, Operand b, float beta, float *c, long ldc) {
    if (alpha == 0) k = 0;  // the reference does not multiply then, not even by infinity
    const bool in_place = !b.transposed && n % PANEL == 0 && m < MANY;
    const std::unique_ptr<float[]> room(in_place ? nullptr : new float[k * PANEL + 1]);
    const auto run = alpha != 1 && !b.transposed ? scaled : plain;
    run(m, n, k, a, b, Target{alpha, beta, b.transposed}, c, ldc, room.get());
}

}  // namespace headrace
