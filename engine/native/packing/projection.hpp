// Projection: one projection of one expert, from the checkpoint's bytes to its parts of a record, without the interpreter.
#pragma once
#include <cstdint>
#include <utility>

#include "packing/levels.hpp"

namespace headrace {

struct Packed {
    double errors[LEVELS];  // squared, by level
    double energy;          // sum of the weights' squares
    bool finite;            // the weights; if false, the rest has no meaning
};

// What a run of rows remembers of each of its groups.
struct GroupErrors {
    double of_level[LEVELS];
    float mlx;   // squared error on the grid of mx.quantize
    bool back;   // whether the group takes that grid
};
using Loss = std::pair<float, std::int64_t>;  // how much worse than mx.quantize, and the group's number in its run

// Rows of a run: the error of the highest level of a run never exceeds that of mx.quantize.
std::int64_t rows_of_run(const Source &source);

// `errors` and `losses` have room for the groups of a run.
Packed pack_projection(const Source &source, const Target &target, GroupErrors *errors, Loss *losses);

}  // namespace headrace
