#include "packing/projection.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

namespace headrace {
namespace {

constexpr std::int64_t RUN = 1 << 19;  // weights

// A run of rows, on its way into a record.
struct Run {
    const Source &source;
    const Target &target;
    Widths widths;
    bool shaped;
    std::int64_t first, count;  // groups
    GroupErrors *errors;
    Loss *losses;
};

// A batch of groups of a run, which is filled and packed.
struct Batch {
    const Run &run;
    Groups groups{};
    double energy = 0;  // sum of the weights' squares, over all batches

    explicit Batch(const Run &of) : run(of) { groups.size = run.source.group_size; }

    void add(std::int64_t group, bool shaped) {
        groups.number[groups.count++] = run.first + group;
        if (groups.count == BATCH / groups.size) pack(shaped);
    }

    void pack(bool shaped) {
        const int size = groups.size;
        float weights[BATCH], mlx[GROUPS];
        double errors[LEVELS][GROUPS];
        bool finite = true;
        if (run.target.exact) {
            keep_codes(run.source, run.widths, groups);
        } else {
            for (int g = 0; g < groups.count; ++g) decode(run.source, groups.number[g] * size, size, weights + g * size);
            finite = shaped ? on_shaped_grid(weights, run.target.type, groups, mlx)
                            : on_mlx_grid(weights, run.widths, run.target.type, groups);
        }
        energy += finite ? write_levels(groups, run.target, errors) : NAN;
        for (int g = 0; g < groups.count; ++g) {
            GroupErrors &kept = run.errors[groups.number[g] - run.first];
            for (int level = 0; level < run.target.levels; ++level) kept.of_level[level] = errors[level][g];
            kept.mlx = shaped ? mlx[g] : 0;
        }
        groups.count = 0;
    }
};

double pack_run(const Run &run) {
    Batch batch(run);
    for (std::int64_t g = 0; g < run.count && std::isfinite(batch.energy); ++g) batch.add(g, run.shaped);
    if (batch.groups.count > 0) batch.pack(run.shaped);
    return batch.energy;
}

// Marks the groups with the largest losses; those that are marked lose `lost` together, and without the last one less.
void mark_largest(Loss *losses, std::int64_t count, double lost, GroupErrors *errors) {
    while (count > 0) {
        const std::int64_t half = (count + 1) / 2;
        double sum = 0;
        std::nth_element(losses, losses + half - 1, losses + count, std::greater<Loss>());
        for (std::int64_t n = 0; n < half; ++n) sum += losses[n].first;
        if (sum >= lost && half > 1) {
            count = half;
            continue;
        }
        for (std::int64_t n = 0; n < half; ++n) errors[losses[n].second].back = true;
        if (sum >= lost) return;
        lost -= sum;
        losses += half;
        count -= half;
    }
}

// If mx.quantize has the smaller error over the run, the groups that lose the most take its grid and its codes.
void take_back(const Run &run) {
    const int top = run.target.levels - 1;
    double lost = 0;
    std::int64_t worse = 0;
    for (std::int64_t g = 0; g < run.count; ++g) {
        const float loss = static_cast<float>(run.errors[g].of_level[top]) - run.errors[g].mlx;
        lost += loss;
        run.errors[g].back = false;
        if (loss > 0) run.losses[worse++] = {loss, g};
    }
    if (lost <= 0) return;
    mark_largest(run.losses, worse, lost, run.errors);
    Batch batch(run);
    for (std::int64_t g = 0; g < run.count; ++g) {
        if (run.errors[g].back) batch.add(g, false);
    }
    if (batch.groups.count > 0) batch.pack(false);
}

}  // namespace

std::int64_t rows_of_run(const Source &source) { return std::max<std::int64_t>(1, RUN / source.columns); }

Packed pack_projection(const Source &source, const Target &target, GroupErrors *errors, Loss *losses) {
    Packed found{};
    const Widths widths = target.widths();
    const bool shaped = !target.exact && target.levels == 2 && target.bits[0] == 2 && target.bits[1] == 4;
    const std::int64_t in_row = source.columns / source.group_size, rows = rows_of_run(source);
    for (std::int64_t row = 0; row < source.rows; row += rows) {
        const std::int64_t count = std::min(rows, source.rows - row) * in_row;
        const Run run{source, target, widths, shaped, row * in_row, count, errors, losses};
        found.energy += pack_run(run);
        if (!std::isfinite(found.energy)) return found;
        if (shaped) take_back(run);
        for (std::int64_t g = 0; g < count; ++g) {
            for (int level = 0; level < target.levels; ++level) found.errors[level] += errors[g].of_level[level];
        }
    }
    found.finite = true;
    return found;
}

}  // namespace headrace
