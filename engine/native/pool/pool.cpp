#include "pool/pool.hpp"

#include <algorithm>

namespace headrace {
Pool::Pool(Layer &layer, Reader &reader, Table table, Recipe recipe)
    : layer(layer), reader_(reader), table_(std::move(table)), recipe_(std::move(recipe)) {}

Pool::~Pool() { forget(); }

Pool::Status Pool::queue(const Placed &placed, bool speculative, bool settles) {
    changed = true;
    LoadPtr load = std::make_shared<Load>();
    load->expert = placed.expert;
    load->slot = placed.slot;
    load->counts = layer.counts + READS;
    if (recipe_.keeps_staging || !recipe_.made.empty() || recipe_.checksums != nullptr) load->arrival = this;
    if (recipe_.staging_bytes > 0) {
        load->staging = reader_.take_buffer(recipe_.staging_bytes);
        if (load->staging.size() == 0) {
            table_.free(placed.expert);
            return NO_MEMORY;
        }
    }
    recipe_.ranges(*load, ranges_);
    if (!reader_.submit(load, ranges_, speculative, settles)) {
        table_.free(placed.expert);
        return CLOSED;
    }
    coming_.emplace(placed.expert, std::move(load));
    ++queued;
    return DONE;
}

void Pool::count_useful(const std::vector<std::int32_t> &experts) {
    if (!table_.any_guessed()) return;
    const double now = steady_seconds();
    double first = 0, last = 0;
    for (const std::int32_t expert : experts) {
        if (!table_.guessed(expert)) continue;
        table_.confirm(expert);
        ++useful;
        const auto found = coming_.find(expert);
        if (found == coming_.end()) continue;
        const bool done = found->second->done.load(std::memory_order_acquire);
        last = std::max(last, done ? found->second->ended : now);
        const double begun = reader_.begun(found->second);
        if (begun > 0) first = first == 0 ? begun : std::min(first, begun);
    }
    if (first > 0) hidden_s += last - first;
}

Pool::Status Pool::request(const std::vector<std::int32_t> &experts, const std::vector<std::int32_t> &keep,
                           bool speculative, bool settles) {
    queued = 0;
    count_useful(experts);
    if (!coming_.empty()) {
        for (const std::int32_t expert : experts) {
            const auto found = coming_.find(expert);
            if (found == coming_.end()) continue;
            if (found->second->failed()) {  // left by an earlier pass that another error ended: read it again
                coming_.erase(found);
                table_.free(expert);
                changed = true;
            } else if (!speculative) {
                reader_.hurry(found->second);
            }
        }
    }
    if (!table_.demand(experts, keep, placed_)) return TOO_MANY;
    for (std::size_t i = 0; i < placed_.size(); ++i) {
        const auto found = coming_.find(placed_[i].victim);
        if (found != coming_.end()) {
            reader_.cancel(found->second);
            reader_.join(found->second);  // reads that have begun still write into the slot
            coming_.erase(found);
        }
        kept_.erase(placed_[i].victim);
        const Status status = queue(placed_[i], speculative, settles);
        if (status == DONE) continue;
        while (++i < placed_.size()) table_.free(placed_[i].expert);
        return status;
    }
    return DONE;
}

void Pool::leave(std::int32_t expert) {
    const auto found = coming_.find(expert);
    Load &load = *found->second;
    if (load.failure.kind != Failure::NONE) {  // the slot's content must not count as a hit later
        failed.push_back({expert, load.failure});
        table_.free(expert);
        changed = true;
    } else if (recipe_.keeps_staging) {
        kept_[expert] = std::move(load.staging);
        arrived.push_back(expert);
    }
    reader_.give_buffer(std::move(load.staging));
    coming_.erase(found);
}

void Pool::settle(const std::vector<std::int32_t> &experts) {
    waited_s = 0;
    failed.clear();
    arrived.clear();
    if (coming_.empty()) return;
    among_.clear();
    for (const std::int32_t expert : experts) {
        if (coming_.count(expert) > 0) among_.push_back(expert);
    }
    if (among_.empty()) return;
    std::sort(among_.begin(), among_.end());
    among_.erase(std::unique(among_.begin(), among_.end()), among_.end());
    const double begin = steady_seconds();
    for (const std::int32_t expert : among_) reader_.join(coming_[expert]);
    waited_s = steady_seconds() - begin;
    for (const std::int32_t expert : among_) leave(expert);
}

bool Pool::guess(std::int32_t expert, const std::vector<std::int32_t> &experts, std::int64_t time, Status &status) {
    status = DONE;
    if (layer.slot_of[expert] >= 0) return false;
    among_ = experts;
    for (const auto &one : coming_) among_.push_back(one.first);
    Placed placed;
    if (!table_.guess(expert, time, among_, placed)) return false;
    kept_.erase(placed.victim);
    status = queue(placed, true, false);
    return status == DONE;
}

void Pool::take_in() {
    failed.clear();
    arrived.clear();
    among_.clear();
    for (const auto &one : coming_) {
        if (one.second->done.load(std::memory_order_acquire)) among_.push_back(one.first);
    }
    std::sort(among_.begin(), among_.end());
    for (const std::int32_t expert : among_) leave(expert);
    failed.clear();
}

void Pool::release(std::int32_t expert) {
    const auto found = kept_.find(expert);
    if (found == kept_.end()) return;
    reader_.give_buffer(std::move(found->second));
    kept_.erase(found);
}

void Pool::forget() {
    for (const auto &one : coming_) reader_.cancel(one.second);
    for (const auto &one : coming_) reader_.join(one.second);  // reads that have begun still write into their slots
    coming_.clear();
    kept_.clear();
    table_.clear();
    changed = true;
}

const Buffer *Pool::staging(std::int32_t expert) {
    const auto found = kept_.find(expert);
    return found == kept_.end() ? nullptr : &found->second;
}

}  // namespace headrace
