// One block of a reader, from the file to its end, and what follows when it was the last one of its load.
#include <algorithm>
#include <chrono>

#include "reading/reader.hpp"

namespace headrace {
namespace {

constexpr double MOST_WAIT_S = 1e6;  // of a simulated disk

}  // namespace

void Reader::transfer(Worker &worker, const Taken &taken, Failure &failure) {
    Load &load = *taken.load;
    const Block &block = load.blocks[taken.block];
    failure.file = block.file;
    failure.at = block.offset;
    if (worker.scratch.data == nullptr && !attach(worker, failure)) return;
    const std::size_t file = static_cast<std::size_t>(block.file);
    const std::int64_t got =
        worker.blocks.read(options_.fds[file], block, load.pieces.data(), options_.rules, options_.memory[file],
                           worker.scratch, worker.device, faults, taken.speculative, failure);
    if (got < 0) return;
    if (throttle_.limited()) {
        const double wait = std::min(throttle_.end(got, load.requested) - steady_seconds(), MOST_WAIT_S);
        if (wait > 0) {
            std::unique_lock<std::mutex> lock(mutex_);
            dropped_.wait_for(lock, std::chrono::duration<double>(wait), [this] { return dropping_; });
        }
    }
    count(load, got);
}

// Counts a block of a load.
void Reader::count(const Load &load, std::int64_t bytes) {
    for (std::int64_t *counts : {totals_, load.counts}) {
        if (counts == nullptr) continue;
        __atomic_fetch_add(&counts[0], 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&counts[1], bytes, __ATOMIC_RELAXED);
    }
}

void Reader::end_block(const LoadPtr &load, std::size_t block, const Failure &failure, Worker &worker,
                       std::unique_lock<std::mutex> &lock) {
    if (load->failure.kind == Failure::NONE && failure.kind != Failure::NONE) load->failure = failure;
    const std::int32_t part = load->blocks[block].part;
    if (part >= 0 && --load->blocks_of_part[static_cast<std::size_t>(part)] == 0 && load->failure.kind == Failure::NONE) {
        make(load, static_cast<std::size_t>(part), worker, lock);
    }
    if (--load->left != 0) return;
    if (load->failure.kind == Failure::NONE && load->arrival != nullptr) {
        lock.unlock();
        std::size_t parts = 0;
        try {
            parts = load->arrival->arrive(*load);
        } catch (const std::exception &) {
            load->failure.kind = Failure::MEMORY;
        }
        lock.lock();
        load->parts = load->failure.kind == Failure::NONE ? parts : load->next_part;
        load->parts_left = load->parts - load->next_part;
    }
    if (load->parts_left == 0) {
        end(load);
        return;
    }
    if (load->parts_left > 1) {
        arriving_.push_back(load);
        wake(2);
    }
    while (load->next_part < load->parts) do_part(load, load->next_part++, worker, lock);
}

void Reader::do_part(const LoadPtr &load, std::size_t part, Worker &worker, std::unique_lock<std::mutex> &lock) {
    make(load, part, worker, lock);
    if (--load->parts_left == 0) end(load);
}

void Reader::make(const LoadPtr &load, std::size_t part, Worker &worker, std::unique_lock<std::mutex> &lock) {
    lock.unlock();
    Failure failure;
    try {
        const bool ready = options_.device == nullptr || worker.scratch.data != nullptr || attach(worker, failure);
        if (ready) failure = load->arrival->part(*load, part, worker);
    } catch (const std::exception &) {
        failure.kind = Failure::MEMORY;
    }
    lock.lock();
    if (load->failure.kind == Failure::NONE) load->failure = failure;
}

void Reader::end(const LoadPtr &load) {
    load->ended = steady_seconds();
    load->done.store(true, std::memory_order_release);
    if (load->awaited) done_.notify_all();
}

}  // namespace headrace
