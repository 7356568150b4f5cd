// Table: the assignment of a pool's slots to experts, and the choice of the expert to evict.
//
// engine/cache/eviction.py is the specification; a property test compares both step by step.
#pragma once
#include <cstdint>
#include <vector>

#include "eviction/layer.hpp"

namespace headrace {

struct Placed {
    std::int32_t expert;
    std::int32_t slot;
    std::int32_t victim;  // the evicted expert; -1: the slot was free
};

class Table {
  public:
    // `pinned` (one byte per expert of the layer): experts that are never evicted.
    Table(Layer &layer, std::int32_t slots, std::vector<std::uint8_t> pinned);

    // Assigns a slot to each uncached expert of `experts` (distinct), without evicting any of `experts` or `keep`. False if
    // there are more than the table has slots for; nothing is changed then.
    bool demand(const std::vector<std::int32_t> &experts, const std::vector<std::int32_t> &keep, std::vector<Placed> &placed);
    // Assigns a slot to `expert`, predicted for token `time`. False if that would evict a warmer expert, one of `keep`, or
    // another prediction for that token.
    bool guess(std::int32_t expert, std::int64_t time, const std::vector<std::int32_t> &keep, Placed &placed);
    // Frees the slot of `expert`; its content becomes invalid.
    void free(std::int32_t expert);
    // Frees the slots of all experts that are not pinned.
    void clear();

    // The expert in each slot; -1: free.
    const std::vector<std::int32_t> &experts() const { return expert_in_; }
    bool guessed(std::int32_t expert) const { return guessed_[static_cast<std::size_t>(expert)] != NEVER; }
    void confirm(std::int32_t expert);  // a predicted expert is used
    bool any_guessed() const { return guesses_ > 0; }

    static constexpr std::int64_t NEVER = INT64_MIN;

  private:
    void put(std::int32_t expert, std::int32_t slot, std::int32_t victim);
    void mark(const std::vector<std::int32_t> &keep);  // begins a new set of experts that are not evicted
    void also(const std::vector<std::int32_t> &keep);  // adds to it; negative numbers are no experts
    bool evictable(std::int32_t expert) const {
        return expert >= 0 && !pinned_[static_cast<std::size_t>(expert)] && stays_[static_cast<std::size_t>(expert)] != call_;
    }

    Layer &layer_;
    std::vector<std::int32_t> expert_in_;  // by slot; -1: free
    std::vector<std::uint8_t> pinned_;
    std::vector<std::int64_t> guessed_;  // by expert: the token that it was predicted for
    std::vector<std::uint32_t> stays_;   // the number of the call that keeps an expert
    std::vector<std::int32_t> coldest_;  // slots, for `demand`
    std::uint32_t call_ = 0;
    std::int32_t free_ = 0;
    std::int32_t guesses_ = 0;
};

}  // namespace headrace
