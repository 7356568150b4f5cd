// Pool: the slots of one layer's experts at one width. It chooses slots, queues reads and waits for them.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "eviction/table.hpp"
#include "pool/recipe.hpp"
#include "reading/reader.hpp"

namespace headrace {

// A load that failed, by expert.
struct Failed {
    std::int32_t expert;
    Failure failure;
};

// Called by one thread at a time; only `arrive` and `part` run in the reader's threads.
class Pool : public Arrival {
  public:
    enum Status { DONE, CLOSED, TOO_MANY, NO_MEMORY };

    Pool(Layer &layer, Reader &reader, Table table, Recipe recipe);
    ~Pool() override;
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    // Assigns slots to `experts` (distinct members) and queues the missing reads. Neither they nor `keep` are evicted.
    // Speculative reads wait for all others; a later request without it promotes them. A victim whose read is under way is
    // waited for, in this call.
    // `settles`: the caller settles them at once.
    Status request(const std::vector<std::int32_t> &experts, const std::vector<std::int32_t> &keep, bool speculative,
                   bool settles = false);
    // Waits until all of `experts` are in their slots. Experts that could not be read lose their slot and are in `failed`.
    void settle(const std::vector<std::int32_t> &experts);
    // Counts predicted experts among `experts`, which are used now, and how long their reads have run.
    void count_useful(const std::vector<std::int32_t> &experts);
    // Starts to read `expert`, predicted for token `time`, without evicting a warmer expert, one of `experts`, or one whose
    // read is under way. True if a read was queued.
    bool guess(std::int32_t expert, const std::vector<std::int32_t> &experts, std::int64_t time, Status &status);
    // Withdraws the speculative reads of all but `experts` that have not begun, and frees their slots.
    void withdraw(const std::vector<std::int32_t> &experts);
    // Settles the reads that have ended; their failures are dropped, because no token needs them yet.
    void take_in();
    // Frees all slots that are not pinned, after their reads have ended, and those whose expert did not arrive.
    void forget();

    // While `dry`, experts get slots and nothing is read. `owed` then are the experts whose slots lack their bytes, `fetch`
    // queues the reads of one of them, and `disown` takes the slots of those that are left; their number.
    std::vector<std::int32_t> owed() const;
    bool owes(std::int32_t expert) const;
    Status fetch(std::int32_t expert);
    std::int64_t disown();
    // Where the bytes of an expert begin: its first file, and the lowest offset there.
    std::pair<std::int32_t, std::int64_t> begin(std::int32_t expert) const { return recipe_.begin(expert); }

    bool settled() const { return coming_.empty(); }
    bool waits_for(std::int32_t expert) const { return coming_.count(expert) > 0; }
    bool guessed(std::int32_t expert) const { return table_.guessed(expert); }
    std::size_t arrive(Load &load) override { return recipe_.arrive(load); }
    Failure part(const Load &load, std::size_t number, Worker &worker) override {
        return recipe_.make_part(load, number, worker);
    }

    Layer &layer;
    bool dry = false;
    bool changed = true;  // slot_of differs from the device's copy
    std::int64_t queued = 0;  // loads of the last request
    double waited_s = 0;      // of the last `settle`
    std::vector<Failed> failed;          // of the last `settle`
    std::vector<std::int32_t> arrived;   // experts of the last `settle` whose staging memory the caller takes
    std::int64_t useful = 0;  // predicted experts that were used
    double hidden_s = 0;      // time that their reads had run when they were needed

    // Hands over the staging memory of an expert that arrived; empty if there is none.
    Buffer take_staging(std::int32_t expert);

  private:
    Status queue(const Placed &placed, bool speculative, bool settles);
    void retire(std::int32_t victim);
    void undo(std::int32_t expert);
    void leave(std::int32_t expert);

    Reader &reader_;
    Table table_;
    Recipe recipe_;
    std::vector<std::int32_t> content_;  // by slot: the expert whose bytes are there; -1: unknown
    std::unordered_map<std::int32_t, LoadPtr> coming_;
    std::unordered_map<std::int32_t, Buffer> kept_;
    std::vector<Placed> placed_;
    std::vector<Range> ranges_;
    std::vector<std::int32_t> among_;
};

}  // namespace headrace
