// Load: the reads of one expert, as far as they have come.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "reading/block.hpp"
#include "reading/buffer.hpp"

namespace headrace {

struct Load;

// What a reader's thread has for its work.
struct Worker {
    BlockReader blocks;
    Buffer memory;  // of `scratch`, aligned to a unit of direct reads
    Scratch scratch;
    DeviceCopy *device = nullptr;
    std::vector<std::uint8_t> room;  // for conversions larger than the scratch memory
};

// Runs in the reader's threads, on the bytes of a load. It outlives the load.
class Arrival {
  public:
    virtual ~Arrival() = default;
    // In the thread that read the last block: the number of parts. Those from the load's `next_part` on follow, which threads
    // may do at the same time. A failure is left in the load, and no part follows.
    virtual std::size_t arrive(Load &load) = 0;
    // Does a part. Returns why it failed.
    virtual Failure part(const Load &load, std::size_t number, Worker &worker) = 0;
};

// All members but `done` are protected by the reader's mutex while the load is queued.
struct Load {
    std::vector<Block> blocks;
    std::vector<Piece> pieces;
    std::size_t next = 0;  // the first block that no thread has begun
    std::size_t left = 0;  // blocks that have not ended
    Failure failure;       // the first one
    Arrival *arrival = nullptr;
    std::vector<std::uint32_t> blocks_of_part;  // that have not ended, of each part that is done before the last block ends
    std::size_t parts = 0;      // of the arrival
    std::size_t next_part = 0;  // the first that no thread has begun, of those that follow the last block
    std::size_t parts_left = 0; // that have not ended
    std::int32_t expert = -1;
    std::int32_t slot = -1;
    Buffer staging;
    std::int64_t *counts = nullptr;  // reads and bytes that its layer counts
    bool speculative = false;
    bool awaited = false;  // a thread sleeps until it ends
    double requested = 0, begun = 0, ended = 0;  // seconds of the steady clock; 0: not yet
    std::atomic<bool> done{false};               // no thread writes any more

    bool failed() const { return done.load(std::memory_order_acquire) && failure.kind != Failure::NONE; }
};

using LoadPtr = std::shared_ptr<Load>;

}  // namespace headrace
