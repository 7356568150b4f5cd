#include "eviction/layer.hpp"

#include <algorithm>

namespace headrace {

void Layer::distinct(const std::int32_t *ids, std::int64_t number, std::vector<std::int32_t> &found) {
    found.clear();
    if (++call_ == 0) {
        std::fill(seen_.begin(), seen_.end(), 0);
        call_ = 1;
    }
    for (std::int64_t i = 0; i < number; ++i) {
        if (ids[i] < 0 || seen_[static_cast<std::size_t>(ids[i])] == call_) continue;
        seen_[static_cast<std::size_t>(ids[i])] = call_;
        found.push_back(ids[i]);
    }
    std::sort(found.begin(), found.end());
}

void Layer::request(const std::vector<std::int32_t> &distinct) {
    std::int64_t hits = 0;
    for (const std::int32_t expert : distinct) hits += slot_of[expert] >= 0;
    counts[HITS] += hits;
    const std::int64_t misses = static_cast<std::int64_t>(distinct.size()) - hits;
    counts[MISSES] += misses;
    counts[LAYERS_MISSED] += misses > 0;
}

}  // namespace headrace
