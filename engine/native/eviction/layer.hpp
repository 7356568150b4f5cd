// Layer: what is cached of one layer's experts, and how often each was used. The pools of the layer share it.
#pragma once
#include <cstdint>
#include <vector>

#include "eviction/warmth.hpp"

namespace headrace {

// LAYERS_MISSED: requests of the layer that missed at least one expert.
enum Count { HITS, MISSES, READS, BYTES, LAYERS_MISSED, COUNTS };

// The arrays belong to Python, with one entry per expert, and outlive this object.
class Layer {
  public:
    Layer(std::int32_t *slot_of, double *warmth, std::int64_t *uses, std::int32_t experts, std::int64_t *counts,
          double half_life)
        : slot_of(slot_of), warmth(warmth), uses(uses), experts(experts), counts(counts), half_life(half_life),
          seen_(static_cast<std::size_t>(experts), 0) {}

    // Counts one use of each of `ids` (repeats allowed, negative ones are skipped) at a time in tokens.
    void use(const std::int32_t *ids, std::int64_t number, std::int64_t time) {
        for (std::int64_t i = 0; i < number; ++i) {
            if (ids[i] < 0) continue;
            warmth[ids[i]] = logaddexp2(warmth[ids[i]], static_cast<double>(time) / half_life);
            ++uses[ids[i]];
        }
    }
    // Sets `found` to the distinct ids that are not negative, in ascending order.
    void distinct(const std::int32_t *ids, std::int64_t number, std::vector<std::int32_t> &found);
    // Counts a request of distinct experts: a hit for each that has a slot, otherwise a miss.
    void request(const std::vector<std::int32_t> &distinct);
    // The warmth that an expert would have after a use.
    double if_used(std::int32_t expert, std::int64_t time) const {
        return logaddexp2(warmth[expert], static_cast<double>(time) / half_life);
    }

    std::int32_t *slot_of;  // -1: not cached
    double *warmth;
    std::int64_t *uses;
    std::int32_t experts;
    std::int64_t *counts;  // see Count
    double half_life;      // tokens

  private:
    std::vector<std::uint32_t> seen_;  // the number of the call that saw an expert
    std::uint32_t call_ = 0;
};

}  // namespace headrace
