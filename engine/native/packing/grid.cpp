#include <cmath>

#include "packing/estimate.hpp"
#include "packing/groups.hpp"

namespace headrace {
namespace {

constexpr float SMALLEST = 1e-7f;  // scale, as in mx.quantize

// The ends of the ranges of some groups.
struct Ranges {
    float low[GROUPS], high[GROUPS];
};

// A grid of a group: its values are origin + step * code.
struct Line {
    float step[GROUPS], origin[GROUPS];
};

template <int SIZE>
HEADRACE_INLINE bool find_ranges(const float *weights, int count, Ranges &found) {
    bool finite = true;
    for (int g = 0; g < count; ++g, weights += SIZE) {
        F8 low = load(weights), high = low, none = low - low;  // `none` turns NaN with any weight that is not finite
        for (int i = LANES; i < SIZE; i += LANES) {
            const F8 w = load(weights + i);
            low = least(w, low);
            high = most(w, high);
            none += w - w;
        }
        found.low[g] = smallest(low);
        found.high[g] = largest(high);
        finite &= total(none) == 0 && std::isfinite(found.high[g] - found.low[g]);
    }
    return finite;
}

// The grid of mx.quantize: it starts at the end of the range that is further from 0, and 0 is one of its points.
HEADRACE_INLINE void find_mlx_grids(const Ranges &ranges, int count, int bits, Float type, Line &found) {
    const F8 top = all(static_cast<float>((1 << bits) - 1)), whole = all(8388608.0f);  // from 2^23 on all are integers
    for (int g = 0; g < count; g += LANES) {
        const F8 low = load(ranges.low + g), high = load(ranges.high + g);
        const I8 from_below = size_of(low) > size_of(high);
        const F8 size = most((high - low) / top, all(SMALLEST));
        const F8 scale = from_below ? size : -size, edge = from_below ? low : high, ratio = edge / scale;
        const F8 steps = size_of(ratio), rounded_steps = steps < whole ? (steps + whole) - whole : steps;
        const F8 at_zero = of_bits(bits_of(rounded_steps) | (bits_of(ratio) & (-0x7FFFFFFF - 1)));
        const I8 none = at_zero == all(0);
        store(found.step + g, rounded(none ? scale : edge / at_zero, type));
        store(found.origin + g, rounded(none ? all(0) : edge, type));
    }
}

HEADRACE_INLINE F8 nearest_code(F8 v, F8 origin, F8 inverse, F8 top) {
    return nearest(least(most((v - origin) * inverse, F8{}), top));
}

HEADRACE_INLINE F8 floor_code(F8 code, F8 part, F8 middle) { return nearest(code * part - middle); }

HEADRACE_INLINE void store_codes(const float *codes, int count, std::uint8_t *to) {
    for (int i = 0; i < count; ++i) to[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(codes[i]));
}

template <int SIZE, int LOWER>
HEADRACE_INLINE void mlx_groups(const float *weights, const Widths &widths, const Line &line, Groups &out) {
    const F8 top = all(static_cast<float>((1 << widths.top) - 1));
    float codes[BATCH];
    for (int g = 0; g < out.count; ++g) {
        const F8 origin = all(line.origin[g]), inverse = all(1 / line.step[g]);
        const float *group = weights + g * SIZE;
        F8 v_sum{}, vv{}, off{}, h[LOWER]{}, hh[LOWER]{}, vh[LOWER]{};
        for (int i = 0; i < SIZE; i += LANES) {
            const F8 v = (load(group + i) - origin) * inverse;
            const F8 code = nearest(least(most(v, F8{}), top));
            store(codes + g * SIZE + i, code);
            v_sum += v;
            vv += v * v;
            off += (code - v) * (code - v);
            for (int level = 0; level < LOWER; ++level) {
                const float apart = static_cast<float>(1 << widths.below[level]);
                const F8 upper = floor_code(code, all(1 / apart), all(0.5f - 0.5f / apart));
                h[level] += upper;
                hh[level] += upper * upper;
                vh[level] += v * upper;
            }
        }
        out.unit[g] = out.scale[g] = line.step[g];
        out.low[g] = out.bias[g] = line.origin[g];
        out.step[g] = 1;
        out.error[g] = total(off) * line.step[g] * line.step[g];
        out.v[g] = total(v_sum);
        out.vv[g] = total(vv);
        for (int level = 0; level < LOWER; ++level) {
            out.h[level][g] = total(h[level]);
            out.hh[level][g] = total(hh[level]);
            out.vh[level][g] = total(vh[level]);
        }
    }
    store_codes(codes, out.count * SIZE, out.codes);
}

// The numbers of a shaped batch that its passes hand on.
struct Shaping {
    float v[BATCH];  // weights, scaled to 0 .. 15; then their codes
    float inverse[GROUPS];
    int grid[GROUPS];
    float codes[GROUPS]{}, squares[GROUPS]{}, products[GROUPS]{};  // sums of c, cc and vc on the first grid
    Line fine, coarse;                                       // in units of v
    float first_border[GROUPS], per_border[GROUPS];          // a border between upper codes, and the inverse of their distance
};

// The weights as v, the error of the grid of mx.quantize, and the best first grid.
template <int SIZE>
HEADRACE_INLINE void estimate_groups(const float *weights, const Line &mlx, Groups &out, Shaping &work, float *mlx_error) {
    typedef std::int16_t S16 __attribute__((vector_size(64)));
    const std::int16_t *table = fields(SIZE)[0];
    const F8 bins = all((BINS - 1e-3f) / 15), last = all(BINS - 1);
    for (int g = 0; g < out.count; ++g) {
        const F8 low = all(out.low[g]), inverse = all(work.inverse[g]);
        const F8 step = all(mlx.step[g]), origin = all(mlx.origin[g]), mlx_inverse = all(1 / mlx.step[g]);
        std::int32_t at[SIZE];
        F8 off{};
        for (int i = 0; i < SIZE; i += LANES) {
            const F8 w = load(weights + g * SIZE + i), v = (w - low) * inverse;
            store(work.v + g * SIZE + i, v);
            store(at + i, __builtin_convertvector(least(most(v * bins, F8{}), last), I8) * FIELDS);
            const F8 error = nearest_code(w, origin, mlx_inverse, all(15)) * step + origin - w;
            off += error * error;
        }
        mlx_error[g] = total(off);
        S16 sums[FIELDS / 32]{};
#pragma GCC unroll 4
        for (int i = 0; i < SIZE; ++i) {
            for (int part = 0; part < FIELDS / 32; ++part) {
                S16 row;
                std::memcpy(&row, table + at[i] + 32 * part, sizeof row);
                sums[part] += row;
            }
        }
        std::int16_t stored[FIELDS];
        std::memcpy(stored, sums, sizeof stored);
        work.grid[g] = best_grid<SIZE>(stored);
    }
}

// The sums of the nearest codes on the first grid.
template <int SIZE>
HEADRACE_INLINE void sum_first_codes(Groups &out, Shaping &work) {
    for (int g = 0; g < out.count; ++g) {
        const F8 origin = all(GRID.origin[work.grid[g]]), inverse = all(1 / GRID.step[work.grid[g]]);
        F8 v_sum{}, vv{}, c{}, cc{}, vc{}, h{}, hh{}, vh{};
        for (int i = 0; i < SIZE; i += LANES) {
            const F8 v = load(work.v + g * SIZE + i), code = nearest_code(v, origin, inverse, all(15));
            const F8 upper = floor_code(code, all(0.25f), all(0.375f));
            v_sum += v;
            vv += v * v;
            c += code;
            cc += code * code;
            vc += v * code;
            h += upper;
            hh += upper * upper;
            vh += v * upper;
        }
        out.v[g] = total(v_sum);
        out.vv[g] = total(vv);
        work.codes[g] = total(c);
        work.squares[g] = total(cc);
        work.products[g] = total(vc);
        out.h[0][g] = total(h);
        out.hh[0][g] = total(hh);
        out.vh[0][g] = total(vh);
    }
}

// The line of least squares through v over codes with the given sums.
HEADRACE_INLINE void fit_line(F8 v, F8 c, F8 cc, F8 vc, float size, F8 &step, F8 &origin) {
    const F8 spread = cc - c * c / size, together = vc - v * c / size;
    step = spread < all(0.5f / size) ? all(1) : together / spread;
    origin = (v - step * c) / size;
}

// Both grids refitted to the codes, and the borders that are best for both together: those of each grid are linear in the
// upper code, so their mean is too, weighted by steps and price.
HEADRACE_INLINE void refit(float size, Float type, Groups &out, Shaping &work) {
    for (int g = 0; g < out.count; g += LANES) {
        F8 step, origin, coarse, coarse_origin;
        const F8 v = load(out.v + g), unit = load(out.unit + g), low = load(out.low + g);
        fit_line(v, load(work.codes + g), load(work.squares + g), load(work.products + g), size, step, origin);
        fit_line(v, load(out.h[0] + g), load(out.hh[0] + g), load(out.vh[0] + g), size, coarse, coarse_origin);
        const F8 scale = rounded(most(step * unit, all(SMALLEST)), type), bias = rounded(low + origin * unit, type);
        step = scale / unit;
        origin = (bias - low) / unit;
        const F8 fine = PRICE * step, both = fine + coarse;
        store(out.scale + g, scale);
        store(out.bias + g, bias);
        store(out.step + g, step);
        store(work.fine.step + g, 1 / step);
        store(work.fine.origin + g, origin);
        store(work.per_border + g, both / (fine * 4 * step + coarse * coarse));
        store(work.first_border + g, (fine * (3.5f * step + origin) + coarse * (0.5f * coarse + coarse_origin)) / both);
    }
}

// The final codes: a weight near a border between upper codes goes to the side that is better for both levels.
template <int SIZE>
HEADRACE_INLINE void choose_codes(Groups &out, Shaping &work) {
    for (int g = 0; g < out.count; ++g) {
        const F8 step = all(out.step[g]), origin = all(work.fine.origin[g]), inverse = all(work.fine.step[g]);
        const F8 first = all(work.first_border[g]), per_border = all(work.per_border[g]);
        F8 off{}, h{}, hh{}, vh{};
        for (int i = 0; i < SIZE; i += LANES) {
            const F8 v = load(work.v + g * SIZE + i), border = least(most((v - first) * per_border, F8{}), all(3));
            const F8 below = nearest(border), upper = below < border ? below + all(1) : below;
            const F8 smallest_code = upper * all(4);
            const F8 code = least(most(nearest_code(v, origin, inverse, all(15)), smallest_code), smallest_code + all(3));
            const F8 error = code * step + origin - v;
            store(work.v + g * SIZE + i, code);
            off += error * error;
            h += upper;
            hh += upper * upper;
            vh += v * upper;
        }
        out.error[g] = total(off) * out.unit[g] * out.unit[g];
        out.h[0][g] = total(h);
        out.hh[0][g] = total(hh);
        out.vh[0][g] = total(vh);
    }
    store_codes(work.v, out.count * SIZE, out.codes);
}

template <int SIZE>
HEADRACE_INLINE bool shape(const float *weights, Float type, Groups &out, float *mlx_error) {
    Ranges ranges{};
    Line mlx;
    Shaping work;
    if (!find_ranges<SIZE>(weights, out.count, ranges)) return false;
    find_mlx_grids(ranges, out.count, 4, type, mlx);
    for (int g = 0; g < out.count; ++g) {
        const float width = (ranges.high[g] - ranges.low[g]) / 15;
        out.low[g] = ranges.low[g];
        out.unit[g] = width > SMALLEST ? width : SMALLEST;
        work.inverse[g] = 1 / out.unit[g];
    }
    estimate_groups<SIZE>(weights, mlx, out, work, mlx_error);
    sum_first_codes<SIZE>(out, work);
    refit(SIZE, type, out, work);
    choose_codes<SIZE>(out, work);
    return true;
}

template <int SIZE>
HEADRACE_INLINE bool follow_mlx(const float *weights, const Widths &widths, Float type, Groups &out) {
    Ranges ranges{};
    Line mlx;
    if (!find_ranges<SIZE>(weights, out.count, ranges)) return false;
    find_mlx_grids(ranges, out.count, widths.top, type, mlx);
    if (widths.lower == 1) {
        mlx_groups<SIZE, 1>(weights, widths, mlx, out);
    } else {
        mlx_groups<SIZE, 2>(weights, widths, mlx, out);
    }
    return true;
}

}  // namespace

HEADRACE_CLONES bool on_mlx_grid(const float *weights, const Widths &widths, Float type, Groups &groups) {
    if (groups.size == 32) return follow_mlx<32>(weights, widths, type, groups);
    if (groups.size == 64) return follow_mlx<64>(weights, widths, type, groups);
    return follow_mlx<128>(weights, widths, type, groups);
}

HEADRACE_CLONES bool on_shaped_grid(const float *weights, Float type, Groups &groups, float *mlx_error) {
    if (groups.size == 32) return shape<32>(weights, type, groups, mlx_error);
    if (groups.size == 64) return shape<64>(weights, type, groups, mlx_error);
    return shape<128>(weights, type, groups, mlx_error);
}

}  // namespace headrace
