// Estimate: the best of a few 4-bit grids for a group, from the places of its weights alone.
#pragma once
#include <cstdint>

#include "formats/lanes.hpp"

namespace headrace {

constexpr float PRICE = 2.5f;  // weight of a squared error at 4 bits, relative to 2 bits
constexpr int BINS = 128;       // of a group's range
constexpr int GRIDS = 15;
constexpr int FIELDS = 64;  // 16-bit sums of a group

// Steps and origins of the grids, in units of a 15th of the group's range.
struct Grids {
    float step[GRIDS], origin[GRIDS];
};
extern const Grids GRID;

// A row for each bin: what one weight there adds to the sums of each grid. `fields(size)` is for groups of that size.
using Fields = std::int16_t[BINS][FIELDS];
const Fields &fields(int size);

// Units of the sums for groups of n: the largest that 16 bits hold for any weights, divided by n.
constexpr float SUM_H = 21000, SUM_OUTER = 32000, SUM_VH = 2840, SUM_ERROR = 9800, SUM_V = 4260;
constexpr int SLOTS = 16;  // of each sum: the grids, and one more

// The grid with the smallest estimated error, from the sums of a group's rows.
template <int SIZE>
HEADRACE_INLINE int best_grid(const std::int16_t *sums) {
    constexpr float N = SIZE;
    float wide[FIELDS];
    for (int i = 0; i < FIELDS; ++i) wide[i] = sums[i];
    const F8 v = all(wide[GRIDS] / SUM_V), none = all(0.5f / N);
    wide[GRIDS] = 0;
    F8 estimates[2];
    for (int half = 0; half < 2; ++half) {
        const float *from = wide + half * LANES;
        const F8 h = load(from) * all(N / SUM_H), outer = load(from + SLOTS) * all(N / SUM_OUTER);
        const F8 vh = load(from + 2 * SLOTS) * all(N / SUM_VH), error = load(from + 3 * SLOTS) * all(N / SUM_ERROR);
        const F8 together = vh - v * h, spread = all(0.25f * N) + outer + outer - h * h * all(1 / N);
        estimates[half] = error * all(PRICE) - together * together / most(spread, none);
    }
    estimates[1][LANES - 1] = 3e38f;  // there is no grid in the last slot
    const F8 least_of_all = all(smallest(least(estimates[0], estimates[1])));
    const F8 first = {0, 1, 2, 3, 4, 5, 6, 7}, second = first + all(LANES), none_of_them = all(2 * LANES);
    const F8 at = least(estimates[0] == least_of_all ? first : none_of_them, estimates[1] == least_of_all ? second : none_of_them);
    return static_cast<int>(smallest(at)) % SLOTS;
}

}  // namespace headrace
