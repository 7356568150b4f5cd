#include "packing/estimate.hpp"

#include <cmath>

namespace headrace {
namespace {

constexpr float PARTS[] = {0.95f, 0.9f, 0.85f};                // widths of the grids, as shares of the group's range
constexpr float SHIFTS[] = {-0.8f, -0.4f, 0.0f, 0.4f, 0.8f};  // of the grids, in their steps
constexpr int TOP = 15, INSIDE = 16;                           // weights count as spread evenly over their bin

Grids make_grids() {
    Grids made{};
    int grid = 0;
    for (float part : PARTS) {
        for (float shift : SHIFTS) {
            made.step[grid] = part;
            made.origin[grid++] = (TOP - TOP * part) / 2 + shift * part;
        }
    }
    return made;
}

// The upper codes h are 0 to 3 and v is 0 to 15: both are taken from their middle, so that the sums are small. The sum of
// the squares of h - 1.5 is n / 4 plus twice the number of outer codes, 0 and 3.
void fill(Fields &made, int size) {
    for (int bin = 0; bin < BINS; ++bin) {
        for (int grid = 0; grid < GRIDS; ++grid) {
            double h = 0, outer = 0, vh = 0, error = 0;
            for (int n = 0; n < INSIDE; ++n) {
                const double v = (bin * INSIDE + n + 0.5) * TOP / (BINS * INSIDE);
                const double step = GRID.step[grid], origin = GRID.origin[grid];
                const double code = std::fmin(std::fmax(std::nearbyint((v - origin) / step), 0), TOP);
                const double upper = std::floor(code / 4) - 1.5, off = origin + code * step - v;
                h += upper / INSIDE;
                outer += (std::fabs(upper) > 1 ? 1.0 : 0.0) / INSIDE;
                vh += (v - 7.5) * upper / INSIDE;
                error += off * off / INSIDE;
            }
            const double found[] = {h * SUM_H, outer * SUM_OUTER, vh * SUM_VH, error * SUM_ERROR};
            for (int sum = 0; sum < 4; ++sum) {
                made[bin][sum * SLOTS + grid] = static_cast<std::int16_t>(std::nearbyint(found[sum] / size));
            }
        }
        made[bin][GRIDS] = static_cast<std::int16_t>(std::nearbyint(((bin + 0.5) * TOP / BINS - 7.5) * SUM_V / size));
    }
}

struct Made {
    alignas(64) Fields fields[3];  // a row is two cache lines
    Made() : fields{} {
        for (int n = 0; n < 3; ++n) fill(fields[n], 32 << n);
    }
};

}  // namespace

const Grids GRID = make_grids();

const Fields &fields(int size) {
    static const Made made;
    return made.fields[size == 32 ? 0 : size == 64 ? 1 : 2];
}

}  // namespace headrace
