// Reader: threads that bring the bytes of loads from files into memory, block by block.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "reading/load.hpp"
#include "reading/throttle.hpp"

namespace headrace {

constexpr std::size_t MOST_SPARE = 16;  // staging buffers that are kept for later loads, of all layers

struct ReaderOptions {
    std::vector<int> fds;
    std::vector<std::int64_t> memory;  // alignment of destinations, by file; 0: always through scratch memory
    int threads = 1;
    std::int64_t block_bytes = 1 << 20;
    std::int64_t scratch_unit = 4096;  // scratch memory has room for a block and two of these
    ReadRules rules;
    double gbps = 0;  // bandwidth to simulate; 0: none
    std::unique_ptr<DeviceCopy> device;
    bool dry = false;  // reads nothing: a load counts its blocks and has arrived at once
};

// Demand reads overtake speculative ones. The threads start with the first load. Nothing here touches Python or MLX.
class Reader {
  public:
    explicit Reader(ReaderOptions options);
    ~Reader();
    Reader(const Reader &) = delete;
    Reader &operator=(const Reader &) = delete;

    // Cuts `ranges` into the blocks of `load` and queues them. `joins`: the caller joins it at once, so that no thread needs
    // to be woken yet. False if the reader is closed. Throws if there is no memory or no thread; nothing is queued then.
    bool submit(const LoadPtr &load, std::vector<Range> &ranges, bool speculative, bool joins = false);
    // Moves the remaining blocks of a speculative load before all other speculative ones.
    void hurry(const LoadPtr &load);
    // Drops the blocks that no thread has begun; true if there were any. The load then counts as failed.
    bool cancel(const LoadPtr &load);
    // Drops a speculative load of which no block has begun; true if it was one. It then counts as failed.
    bool withdraw(const LoadPtr &load);
    // When the first read of the load began, in seconds of the steady clock; 0: not yet.
    double begun(const LoadPtr &load);
    // Returns when no thread writes for the load any more. The caller's thread reads demand blocks itself meanwhile, as long
    // as fewer than `threads` read: that takes less time than to wake another one.
    void join(const LoadPtr &load);
    // Finishes the demand reads, drops speculative reads that have not begun, and ends the threads. `drop`: drops all
    // reads that have not begun, and no longer simulates a bandwidth. Any thread may close, more than once.
    void close(bool drop);
    bool closed() const { return closing_; }
    // Scratch memory of threads has at least `size` bytes, if they have not started yet.
    void need_scratch(std::size_t size) { least_scratch_ = std::max(least_scratch_.load(), size); }
    // Staging memory for a load, and its return for later loads; empty if there is no memory.
    Buffer take_buffer(std::size_t size);
    void give_buffer(Buffer buffer);
    // Whether this is a copy in a child process made by fork, which has no threads.
    bool forked() const;

    Faults faults;
    const ReadRules &rules() const { return options_.rules; }
    std::int64_t block_bytes() const { return options_.block_bytes; }
    std::size_t files() const { return options_.fds.size(); }
    int threads();
    std::int64_t reads() const { return __atomic_load_n(&totals_[0], __ATOMIC_RELAXED); }
    std::int64_t bytes_read() const { return __atomic_load_n(&totals_[1], __ATOMIC_RELAXED); }
    bool on_device() const { return options_.device != nullptr; }
    bool dry() const { return options_.dry; }
    void limit(double gbps) { throttle_.limit(gbps); }  // see Throttle

  private:
    struct Taken {
        LoadPtr load;
        std::size_t block = 0;
        std::size_t part = NO_PART;  // of an arrival, instead of a block
        bool speculative = false;
    };
    static constexpr std::size_t NO_PART = static_cast<std::size_t>(-1);
    bool take(Taken &taken, bool speculative);
    bool more() const { return !arriving_.empty() || !demand_.empty(); }
    void work();
    bool attach(Worker &worker, Failure &failure);
    void read(Worker &worker, Taken &taken, std::unique_lock<std::mutex> &lock);
    void transfer(Worker &worker, const Taken &taken, Failure &failure);
    void start_threads();
    bool worth_waking(const Taken &taken) const;
    void count(const Load &load, std::int64_t bytes);
    void wake(int count = 1);
    void release(Worker &worker);
    void end_block(const LoadPtr &load, std::size_t block, const Failure &failure, Worker &worker,
                   std::unique_lock<std::mutex> &lock);
    void make(const LoadPtr &load, std::size_t part, Worker &worker, std::unique_lock<std::mutex> &lock);
    void do_part(const LoadPtr &load, std::size_t part, Worker &worker, std::unique_lock<std::mutex> &lock);
    void end(const LoadPtr &load);
    void drop(const LoadPtr &load);

    ReaderOptions options_;
    Throttle throttle_;
    int forks_;
    std::atomic<std::size_t> least_scratch_{0};
    std::int64_t totals_[2] = {0, 0};  // blocks and bytes
    std::mutex mutex_;
    std::mutex ending_;  // held by the thread that ends the others
    std::condition_variable more_, done_, dropped_;
    std::deque<LoadPtr> demand_, speculative_;
    std::deque<LoadPtr> arriving_;  // with parts that no thread has begun
    std::vector<std::thread> threads_;
    Worker helper_;          // of the thread that waits
    bool helping_ = false;   // a waiting thread uses it
    int idle_ = 0;           // threads that wait for blocks
    int reading_ = 0;        // threads that read a block
    std::atomic<bool> closing_{false};
    bool dropping_ = false;  // closing, and no read is worth waiting for
    std::mutex spare_mutex_;
    std::vector<Buffer> spare_;
};

// Seconds of the steady clock.
double steady_seconds();

}  // namespace headrace
