#include "reading/reader.hpp"

#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <system_error>

#include "reading/priority.hpp"

namespace headrace {
namespace {

constexpr double SPIN_S = 20e-6;  // before a waiting thread sleeps: waking it costs more than that
constexpr double WAKE_S = 30e-6;  // a read that takes longer is worth a second thread
constexpr std::int64_t SMALL_BLOCK = 256 << 10;

// The number of forks between the first process and this one.
int forks() {
    static std::atomic<int> count{0};
    static const int registered = pthread_atfork(nullptr, nullptr, [] { ++count; });
    (void)registered;
    return count;
}

}  // namespace

double steady_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Reader::Reader(ReaderOptions options)
    : options_(std::move(options)), throttle_(options_.gbps), forks_(forks()) {
    threads_.reserve(static_cast<std::size_t>(options_.threads));
    spare_.reserve(MOST_SPARE);
}

Reader::~Reader() {
    close(true);
}

bool Reader::forked() const { return forks_ != forks(); }

bool Reader::submit(const LoadPtr &load, std::vector<Range> &ranges, bool speculative, bool joins) {
    cut(ranges, options_.block_bytes, options_.rules.alignment, load->blocks, load->pieces);
    load->left = load->blocks.size();
    for (const Block &block : load->blocks) {
        if (block.part >= 0) ++load->blocks_of_part[static_cast<std::size_t>(block.part)];
    }
    load->speculative = speculative;
    load->requested = steady_seconds();
    std::lock_guard<std::mutex> lock(mutex_);
    if (closing_) return false;
    if (options_.dry) {
        for (const Block &block : load->blocks) count(*load, transferred_bytes(block, options_.rules.alignment));
        load->left = 0;
        load->next = load->blocks.size();
    }
    if (load->left == 0) {
        end(load);
        return true;
    }
    start_threads();
    (speculative ? speculative_ : demand_).push_back(load);
    if (!joins) wake();
    return true;
}

// The threads leave signals to the interpreter's. If the system refuses more threads, those there are have to do.
void Reader::start_threads() {
    if (static_cast<int>(threads_.size()) == options_.threads) return;
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    try {
        while (static_cast<int>(threads_.size()) < options_.threads) threads_.emplace_back(&Reader::work, this);
    } catch (const std::exception &) {
        if (!threads_.empty()) options_.threads = static_cast<int>(threads_.size());
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (threads_.empty()) throw std::system_error(EAGAIN, std::generic_category(), "no thread for reads can be started");
}

int Reader::threads() {
    std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int>(threads_.size());
}

// Each thread that begins a block or a part wakes two more, so that a request pays for one wake at most.
void Reader::wake(int count) {
    for (int i = 0; i < count && i < idle_ && reading_ < options_.threads; ++i) more_.notify_one();
}

void Reader::hurry(const LoadPtr &load) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!load->speculative) return;
    const bool waits = load->next < load->blocks.size();
    if (waits) demand_.push_back(load);
    load->speculative = false;
    if (waits) wake();
}

bool Reader::cancel(const LoadPtr &load) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (load->next == load->blocks.size()) return false;
    drop(load);
    return true;
}

bool Reader::withdraw(const LoadPtr &load) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!load->speculative || load->next > 0) return false;
    drop(load);
    return true;
}

double Reader::begun(const LoadPtr &load) {
    std::lock_guard<std::mutex> lock(mutex_);
    return load->begun;
}

Buffer Reader::take_buffer(std::size_t size) {
    std::lock_guard<std::mutex> lock(spare_mutex_);
    const auto found = std::find_if(spare_.begin(), spare_.end(), [size](const Buffer &one) { return one.size() == size; });
    if (found == spare_.end()) {
        if (!spare_.empty()) spare_.erase(spare_.begin());  // of another layer: a new buffer takes its place
        return Buffer(size);
    }
    Buffer buffer = std::move(*found);
    spare_.erase(found);
    return buffer;
}

void Reader::give_buffer(Buffer buffer) {
    if (buffer.size() == 0) return;
    std::lock_guard<std::mutex> lock(spare_mutex_);
    if (spare_.size() == MOST_SPARE) spare_.erase(spare_.begin());
    spare_.push_back(std::move(buffer));
}

void Reader::drop(const LoadPtr &load) {
    load->left -= load->blocks.size() - load->next;
    load->next = load->blocks.size();
    if (load->failure.kind == Failure::NONE) load->failure.kind = Failure::CANCELLED;
    if (load->left == 0) end(load);
}

void Reader::join(const LoadPtr &load) {
    if (load->done.load(std::memory_order_acquire)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    if (!helping_) {
        helping_ = true;
        Taken taken;
        while (!load->done.load(std::memory_order_relaxed) && reading_ < options_.threads && take(taken, false)) {
            const bool together = worth_waking(taken);
            const double begin = steady_seconds();
            if (together && more()) wake();
            read(helper_, taken, lock);
            if (!together && more() && steady_seconds() - begin > WAKE_S) wake();
        }
        helping_ = false;
        if (more() || !speculative_.empty()) wake();  // threads may sleep because this one was reading
        if (closing_) done_.notify_all();
    }
    lock.unlock();
    const double until = steady_seconds() + SPIN_S;
    do {
        for (int i = 0; i < 64; ++i) {
            if (load->done.load(std::memory_order_acquire)) return;
        }
    } while (steady_seconds() < until);
    lock.lock();
    load->awaited = true;
    done_.wait(lock, [&load] { return load->done.load(std::memory_order_relaxed); });
}

void Reader::close(bool drop_all) {
    if (forked()) {  // the threads exist in the parent alone, and the mutex may be locked for ever
        for (std::thread &thread : threads_) thread.detach();
        threads_.clear();
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
        for (const LoadPtr &load : speculative_) {
            if (load->speculative && load->next < load->blocks.size()) drop(load);
        }
        if (drop_all) {
            dropping_ = true;
            dropped_.notify_all();
            for (const LoadPtr &load : demand_) {
                if (load->next < load->blocks.size()) drop(load);
            }
        }
        more_.notify_all();
    }
    if (drop_all) faults.end();
    std::lock_guard<std::mutex> ending(ending_);
    for (std::thread &thread : threads_) thread.join();
    std::unique_lock<std::mutex> lock(mutex_);
    threads_.clear();
    done_.wait(lock, [this] { return !helping_; });  // a waiting thread may still read
    release(helper_);
}

// A small block in the page cache is read in less time than it takes to wake a thread. Whether it is there is known when it
// has been read.
bool Reader::worth_waking(const Taken &taken) const {
    if (taken.part != NO_PART || options_.rules.alignment > 1) return true;
    return taken.load->blocks[taken.block].size >= SMALL_BLOCK;
}

bool Reader::take(Taken &taken, bool speculative) {
    taken.part = NO_PART;
    while (!arriving_.empty()) {  // first: a waiting thread needs these, and their staging memory is wanted
        const LoadPtr &load = arriving_.front();
        if (load->next_part < load->parts) {
            taken.load = load;
            taken.part = load->next_part++;
            if (load->next_part == load->parts) arriving_.pop_front();
            return true;
        }
        arriving_.pop_front();
    }
    for (std::deque<LoadPtr> *queue : {&demand_, &speculative_}) {
        if (queue == &speculative_ && !speculative) return false;
        while (!queue->empty()) {
            const LoadPtr &load = queue->front();
            if (load->next < load->blocks.size() && load->speculative == (queue == &speculative_)) {
                taken.load = load;
                taken.block = load->next++;
                taken.speculative = load->speculative;
                if (load->begun == 0) load->begun = steady_seconds();
                if (load->next == load->blocks.size()) queue->pop_front();
                return true;
            }
            queue->pop_front();  // all its blocks have begun, were dropped, or are in the other queue
        }
    }
    return false;
}

void Reader::work() {
    sleep_precisely();
    Worker worker;
    bool low = false;
    Taken taken;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        if (reading_ < options_.threads && take(taken, true)) {
            if (taken.speculative != low) {
                low = taken.speculative;
                set_read_priority(low);
            }
            read(worker, taken, lock);
        } else if (closing_ && demand_.empty() && speculative_.empty()) {
            break;
        } else {
            ++idle_;
            more_.wait(lock);
            --idle_;
        }
    }
    lock.unlock();
    release(worker);
}

void Reader::release(Worker &worker) {
    if (worker.scratch.data == nullptr) return;
    if (worker.device != nullptr) worker.device->detach(worker.scratch);
    worker.scratch = {};
    worker.memory = {};
}

bool Reader::attach(Worker &worker, Failure &failure) {
    worker.device = options_.device.get();
    const auto unit =
        static_cast<std::size_t>(std::max<std::int64_t>({options_.scratch_unit, options_.rules.alignment, 4096}));
    worker.memory = Buffer(std::max(static_cast<std::size_t>(options_.block_bytes) + 2 * unit, least_scratch_.load()), unit);
    worker.scratch.data = worker.memory.data();
    worker.scratch.size = worker.memory.size();
    if (worker.scratch.data == nullptr) {
        failure.kind = Failure::MEMORY;
        return false;
    }
    const int code = worker.device != nullptr ? worker.device->attach(worker.scratch) : 0;
    if (code != 0) {
        worker.scratch = {};
        worker.memory = {};
        failure.kind = Failure::DEVICE;
        failure.code = code;
    }
    return code == 0;
}

void Reader::read(Worker &worker, Taken &taken, std::unique_lock<std::mutex> &lock) {
    ++reading_;
    if (&worker != &helper_ && (more() || !speculative_.empty())) wake(2);
    if (taken.part != NO_PART) {
        do_part(taken.load, taken.part, worker, lock);
        --reading_;
        if (closing_) more_.notify_all();
        taken.load.reset();
        return;
    }
    lock.unlock();
    Failure failure;
    try {
        transfer(worker, taken, failure);
    } catch (const std::exception &) {  // there is no memory for its lists
        failure.kind = Failure::MEMORY;
    }
    lock.lock();
    end_block(taken.load, taken.block, failure, worker, lock);
    --reading_;
    if (closing_) more_.notify_all();
    taken.load.reset();
}

}  // namespace headrace
