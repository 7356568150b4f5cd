#include "eviction/table.hpp"

#include <algorithm>

namespace headrace {

Table::Table(Layer &layer, std::int32_t slots, std::vector<std::uint8_t> pinned)
    : layer_(layer), expert_in_(static_cast<std::size_t>(slots), -1), pinned_(std::move(pinned)),
      guessed_(static_cast<std::size_t>(layer.experts), NEVER), stays_(static_cast<std::size_t>(layer.experts), 0),
      free_(slots) {}

void Table::mark(const std::vector<std::int32_t> &keep) {
    if (++call_ == 0) {
        std::fill(stays_.begin(), stays_.end(), 0);
        call_ = 1;
    }
    also(keep);
}

void Table::also(const std::vector<std::int32_t> &keep) {
    for (const std::int32_t expert : keep) {
        if (expert >= 0) stays_[static_cast<std::size_t>(expert)] = call_;
    }
}

bool Table::demand(const std::vector<std::int32_t> &experts, const std::vector<std::int32_t> &keep,
                   std::vector<Placed> &placed) {
    placed.clear();
    for (const std::int32_t expert : experts) {
        if (layer_.slot_of[expert] < 0) placed.push_back({expert, -1, -1});
    }
    if (placed.empty()) return true;
    const std::size_t spare = std::min(placed.size(), static_cast<std::size_t>(free_));
    const std::size_t evicted = placed.size() - spare;
    coldest_.clear();
    if (evicted > 0) {
        mark(experts);
        also(keep);
        for (std::size_t slot = 0; slot < expert_in_.size(); ++slot) {
            if (evictable(expert_in_[slot])) coldest_.push_back(static_cast<std::int32_t>(slot));
        }
        if (coldest_.size() < evicted) return false;
        const auto colder = [this](std::int32_t a, std::int32_t b) {
            const double x = layer_.warmth[expert_in_[static_cast<std::size_t>(a)]];
            const double y = layer_.warmth[expert_in_[static_cast<std::size_t>(b)]];
            return x != y ? x < y : a < b;
        };
        std::partial_sort(coldest_.begin(), coldest_.begin() + static_cast<std::ptrdiff_t>(evicted), coldest_.end(), colder);
    }
    std::size_t slot = 0, next = 0;
    for (std::size_t i = 0; i < placed.size(); ++i) {
        if (i < spare) {
            while (expert_in_[slot] >= 0) ++slot;
            placed[i].slot = static_cast<std::int32_t>(slot);
        } else {
            placed[i].slot = coldest_[next++];
            placed[i].victim = expert_in_[static_cast<std::size_t>(placed[i].slot)];
        }
        put(placed[i].expert, placed[i].slot, placed[i].victim);
    }
    return true;
}

bool Table::guess(std::int32_t expert, std::int64_t time, const std::vector<std::int32_t> &keep, Placed &placed) {
    placed = {expert, -1, -1};
    if (free_ > 0) {
        placed.slot = static_cast<std::int32_t>(std::find(expert_in_.begin(), expert_in_.end(), -1) - expert_in_.begin());
    } else {
        mark(keep);
        double coldest = 0;
        for (std::size_t slot = 0; slot < expert_in_.size(); ++slot) {
            const std::int32_t cached = expert_in_[slot];
            if (!evictable(cached) || guessed_[static_cast<std::size_t>(cached)] >= time) continue;
            const double warmth = layer_.warmth[cached];
            if (placed.slot < 0 || warmth < coldest) {
                coldest = warmth;
                placed.slot = static_cast<std::int32_t>(slot);
                placed.victim = cached;
            }
        }
        if (placed.slot < 0 || coldest >= layer_.if_used(expert, time)) return false;
    }
    put(expert, placed.slot, placed.victim);
    guessed_[static_cast<std::size_t>(expert)] = time;
    ++guesses_;
    return true;
}

void Table::put(std::int32_t expert, std::int32_t slot, std::int32_t victim) {
    if (victim >= 0) {
        layer_.slot_of[victim] = -1;
        confirm(victim);
    } else {
        --free_;
    }
    layer_.slot_of[expert] = slot;
    expert_in_[static_cast<std::size_t>(slot)] = expert;
}

void Table::confirm(std::int32_t expert) {
    std::int64_t &time = guessed_[static_cast<std::size_t>(expert)];
    guesses_ -= time != NEVER;
    time = NEVER;
}

void Table::free(std::int32_t expert) {
    expert_in_[static_cast<std::size_t>(layer_.slot_of[expert])] = -1;
    layer_.slot_of[expert] = -1;
    confirm(expert);
    ++free_;
}

void Table::clear() {
    for (const std::int32_t expert : std::vector<std::int32_t>(expert_in_)) {
        if (expert >= 0 && !pinned_[static_cast<std::size_t>(expert)]) free(expert);
    }
}

}  // namespace headrace
