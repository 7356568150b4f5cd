#include "packing/levels.hpp"

#include <cstring>
#include <utility>

#include "bitplanes/bitplanes.hpp"
#include "formats/streams.hpp"

namespace headrace {
namespace {

// The least-squares line value = slope * code + offset of each group.
struct Lines {
    double slope[GROUPS], offset[GROUPS];
};

HEADRACE_INLINE void fit(const Groups &groups, int level, Lines &found) {
    const double size = groups.size;
    for (int g = 0; g < groups.count; ++g) {
        const double v = groups.v[g], h = groups.h[level][g], hh = groups.hh[level][g], vh = groups.vh[level][g];
        const double spread = hh - h * h / size, together = vh - v * h / size;
        const bool flat = spread < 0.5 / size;  // the whole group has one upper code
        found.slope[g] = flat ? groups.step[g] : together / (flat ? 1 : spread);
        found.offset[g] = (v - found.slope[g] * h) / size;
    }
}

// The line goes through a zero weight: code `zero` at this level, `value` at the highest.
HEADRACE_INLINE void fit_through(const Groups &groups, int level, double zero, double value, Lines &found) {
    const double size = groups.size;
    for (int g = 0; g < groups.count; ++g) {
        const double v = groups.v[g], h = groups.h[level][g], hh = groups.hh[level][g], vh = groups.vh[level][g];
        const double spread = hh - 2 * zero * h + size * (zero * zero);
        const double together = vh - zero * v - value * h + size * zero * value;
        found.slope[g] = spread > 0 ? together / spread : 1;
        found.offset[g] = value - zero * found.slope[g];
    }
}

// The squared error of a group at a level with the given scale and bias, as they are stored.
HEADRACE_INLINE double line_error(const Groups &groups, int level, int g, double scale, double bias) {
    const double size = groups.size, unit = groups.unit[g], inverse = unit != 0 ? 1 / unit : 0;
    const double slope = scale * inverse, offset = (bias - groups.low[g]) * inverse;
    const double v = groups.v[g], vv = groups.vv[g];
    const double h = groups.h[level][g], hh = groups.hh[level][g], vh = groups.vh[level][g];
    const double squares = vv - 2 * slope * vh - 2 * offset * v + slope * slope * hh + 2 * slope * offset * h +
                           size * (offset * offset);
    return (squares < 0 ? 0 : squares) * (unit * unit);
}

HEADRACE_INLINE void write_lower(const Groups &groups, const Target &target, int level, double *errors) {
    const Part &part = target.parts[level];
    Lines lines;
    float scales[GROUPS], biases[GROUPS];
    if (part.biases == nullptr) {
        fit_through(groups, level, target.zero[level], target.zero[target.levels - 1], lines);
    } else {
        fit(groups, level, lines);
    }
    for (int g = 0; g < groups.count; ++g) {
        const double unit = groups.unit[g], low = groups.low[g];
        scales[g] = rounded(static_cast<float>(unit * lines.slope[g]), target.type);
        biases[g] = part.biases == nullptr ? scales[g] * static_cast<float>(-target.zero[level])
                                           : rounded(static_cast<float>(low + unit * lines.offset[g]), target.type);
    }
    for (int g = 0; g < groups.count; ++g) {
        errors[g] = line_error(groups, level, g, scales[g], biases[g]);
        store_float(part.scales, groups.number[g], scales[g], target.type);
        if (part.biases != nullptr) store_float(part.biases, groups.number[g], biases[g], target.type);
    }
}

// The codes of a batch at one level, `size` bytes a group.
HEADRACE_INLINE void write_codes(const Groups &groups, const std::uint8_t *codes, int size, std::uint8_t *to) {
    for (int g = 0; g < groups.count; ++g) std::memcpy(to + groups.number[g] * size, codes + g * size, size);
}

HEADRACE_INLINE void write_streams(const Groups &groups, const Target &target) {
    const int count = groups.count * groups.size;
    std::uint8_t streams[2][BATCH], low[BATCH];
    std::uint8_t *stream = streams[0], *high = streams[1];
    pack_codes(groups.codes, target.bits[target.levels - 1], count, stream);
    for (int level = target.levels - 1; level > 0; --level) {
        halve_planes(stream, static_cast<std::size_t>(count * target.bits[level] / 8), target.bits[level], high, low);
        write_codes(groups, low, groups.size * target.bits[level] / 16, target.parts[level].codes);
        std::swap(stream, high);
    }
    write_codes(groups, stream, groups.size * target.bits[0] / 8, target.parts[0].codes);
}

}  // namespace

HEADRACE_CLONES double write_levels(const Groups &groups, const Target &target, double (*errors)[GROUPS]) {
    const int top = target.levels - 1;
    for (int level = 0; level < top; ++level) write_lower(groups, target, level, errors[level]);
    const Part &part = target.parts[top];
    double energy[GROUPS], sum = 0;
    for (int g = 0; g < groups.count; ++g) {
        const double unit = groups.unit[g], low = groups.low[g];
        energy[g] = groups.vv[g] * (unit * unit) + 2 * groups.v[g] * unit * low + groups.size * (low * low);
        energy[g] += 0 * (static_cast<double>(groups.scale[g]) + groups.bias[g]);
        errors[top][g] = groups.error[g];
        store_float(part.scales, groups.number[g], groups.scale[g], target.type);
        if (part.biases != nullptr) store_float(part.biases, groups.number[g], groups.bias[g], target.type);
    }
    for (int g = 0; g < groups.count; ++g) sum += energy[g];
    write_streams(groups, target);
    return sum;
}

}  // namespace headrace
