#include "pool/pool.hpp"

#include <algorithm>

namespace headrace {
Pool::Pool(Layer &layer, Reader &reader, Table table, Recipe recipe)
    : layer(layer), reader_(reader), table_(std::move(table)), recipe_(std::move(recipe)),
      content_(table_.experts().size(), -1) {
    recipe_.divide(reader_.rules().alignment == 1);
    if (reader_.on_device()) reader_.need_scratch(recipe_.largest());
}

Pool::~Pool() { forget(); }

Pool::Status Pool::queue(const Placed &placed, bool speculative, bool settles) {
    changed = true;
    if (dry) {
        ++queued;
        return DONE;
    }
    content_[static_cast<std::size_t>(placed.slot)] = -1;
    Status status = CLOSED;
    try {
        LoadPtr load = std::make_shared<Load>();
        load->expert = placed.expert;
        load->slot = placed.slot;
        load->counts = layer.counts + READS;
        load->blocks_of_part.assign(recipe_.early(), 0);
        load->next_part = recipe_.early();
        if (recipe_.keeps_staging || !recipe_.made.empty() || recipe_.checksums != nullptr) load->arrival = this;
        if (recipe_.staging_bytes > 0) load->staging = reader_.take_buffer(recipe_.staging_bytes);
        if (load->staging.size() < recipe_.staging_bytes) {
            status = NO_MEMORY;
        } else {
            recipe_.ranges(*load, ranges_);
            coming_[placed.expert] = load;
            if (reader_.submit(load, ranges_, speculative, settles)) {
                ++queued;
                return DONE;
            }
        }
    } catch (...) {
        undo(placed.expert);
        throw;
    }
    undo(placed.expert);
    return status;
}

// Takes the slot of an expert whose read could not be queued.
void Pool::undo(std::int32_t expert) {
    coming_.erase(expert);
    table_.free(expert);
}

// Ends the read of an evicted expert: reads that have begun still write into the slot.
void Pool::retire(std::int32_t victim) {
    const auto found = coming_.find(victim);
    if (found != coming_.end()) {
        reader_.cancel(found->second);
        reader_.join(found->second);
        coming_.erase(found);
    }
    kept_.erase(victim);
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
    std::size_t i = 0;
    const auto give_up = [this, &i] {
        while (++i < placed_.size()) {
            retire(placed_[i].victim);
            table_.free(placed_[i].expert);
        }
    };
    for (; i < placed_.size(); ++i) {
        retire(placed_[i].victim);
        Status status = DONE;
        try {
            status = queue(placed_[i], speculative, settles);
        } catch (...) {
            give_up();
            throw;
        }
        if (status == DONE) continue;
        give_up();
        return status;
    }
    return DONE;
}

void Pool::leave(std::int32_t expert) {
    const auto found = coming_.find(expert);
    Load &load = *found->second;
    if (load.failure.kind != Failure::NONE) {  // the slot's content must not count as a hit later
        table_.free(expert);
        changed = true;
        failed.push_back({expert, load.failure});
    } else if (recipe_.keeps_staging) {
        kept_[expert] = std::move(load.staging);
        arrived.push_back(expert);
    } else {
        content_[static_cast<std::size_t>(load.slot)] = expert;
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

void Pool::withdraw(const std::vector<std::int32_t> &experts) {
    for (auto one = coming_.begin(); one != coming_.end();) {
        const bool wanted = std::find(experts.begin(), experts.end(), one->first) != experts.end();
        if (wanted || !reader_.withdraw(one->second)) {
            ++one;
            continue;
        }
        reader_.give_buffer(std::move(one->second->staging));
        table_.free(one->first);
        changed = true;
        one = coming_.erase(one);
    }
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

void Pool::forget() {
    for (const auto &one : coming_) reader_.cancel(one.second);
    for (const auto &one : coming_) {
        reader_.join(one.second);  // reads that have begun still write into their slots
        if (one.second->failed() || recipe_.keeps_staging) table_.free(one.first);  // a pinned expert, too
        else content_[static_cast<std::size_t>(one.second->slot)] = one.first;
    }
    coming_.clear();
    for (const auto &one : kept_) table_.free(one.first);
    kept_.clear();
    table_.clear();
    changed = true;
}

std::vector<std::int32_t> Pool::owed() const {
    std::vector<std::int32_t> found;
    for (const std::int32_t expert : table_.experts()) {
        if (expert >= 0 && owes(expert)) found.push_back(expert);
    }
    return found;
}

bool Pool::owes(std::int32_t expert) const {
    const auto slot = static_cast<std::size_t>(layer.slot_of[expert]);  // -1: beyond all slots
    return slot < content_.size() && table_.experts()[slot] == expert && content_[slot] != expert && coming_.count(expert) == 0;
}

Pool::Status Pool::fetch(std::int32_t expert) {
    return queue({expert, layer.slot_of[expert], -1}, false, false);
}

std::int64_t Pool::disown() {
    const std::vector<std::int32_t> lost = owed();
    for (const std::int32_t expert : lost) table_.free(expert);
    changed = changed || !lost.empty();
    return static_cast<std::int64_t>(lost.size());
}

Buffer Pool::take_staging(std::int32_t expert) {
    const auto found = kept_.find(expert);
    if (found == kept_.end()) return Buffer();
    Buffer memory = std::move(found->second);
    kept_.erase(found);
    content_[static_cast<std::size_t>(layer.slot_of[expert])] = expert;  // the caller converts it into the slot
    return memory;
}

}  // namespace headrace
