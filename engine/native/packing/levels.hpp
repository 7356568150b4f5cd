// Levels: the scales, biases and bit planes of every level of a record, from the codes of the highest level.
#pragma once
#include <cstdint>

#include "packing/groups.hpp"

namespace headrace {

// A projection's parts of a record at one level. `biases` is null if the projection has none.
struct Part {
    std::uint8_t *scales, *biases, *codes;
};

struct Target {
    Float type;  // of scales and biases
    bool exact;  // keep the source's codes
    int levels;
    int bits[LEVELS];     // of each level, the lowest first; each is twice the one before
    double zero[LEVELS];  // codes of a zero weight, where parts have no biases
    Part parts[LEVELS];

    Widths widths() const {
        Widths found{bits[levels - 1], levels - 1, {}};
        for (int level = 0; level < found.lower; ++level) found.below[level] = found.top - bits[level];
        return found;
    }
};

// Writes a batch. `errors` receives the squared error of each group at each level, [levels][GROUPS]. Returns the sum of the
// weights' squares, which is not finite if a scale or a bias is not.
double write_levels(const Groups &groups, const Target &target, double (*errors)[GROUPS]);

}  // namespace headrace
