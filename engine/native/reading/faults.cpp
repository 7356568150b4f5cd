#include "reading/faults.hpp"

#include <cerrno>
#include <chrono>

namespace headrace {

ssize_t Faults::read(std::int32_t file, int fd, const iovec *into, int count, std::int64_t offset, bool speculative) {
    if (!active_.load(std::memory_order_acquire)) return preadv(fd, into, count, offset);
    std::int64_t size = 0;
    for (int i = 0; i < count; ++i) size += static_cast<std::int64_t>(into[i].iov_len);
    Fault fault;
    {
        std::unique_lock<std::mutex> lock(mutex_);
        if (recording_) calls_.push_back({file, offset, std::vector<iovec>(into, into + count), speculative});
        released_.wait(lock, [this] { return !held_ || ended_; });
        for (Fault &one : faults_) {
            const bool touched = offset < one.end && offset + size > one.begin;
            if ((one.file >= 0 && one.file != file) || !touched || one.times == 0) continue;
            if (one.times > 0) --one.times;
            fault = one;
            break;
        }
        if (fault.delay_s > 0) released_.wait_for(lock, std::chrono::duration<double>(fault.delay_s), [this] { return ended_; });
    }
    if (fault.error != 0) {
        errno = fault.error;
        return -1;
    }
    if (fault.skip) return static_cast<ssize_t>(size);
    if (fault.most < 0 || fault.most >= size) return preadv(fd, into, count, offset);
    std::vector<iovec> some(into, into + count);
    std::int64_t rest = fault.most;
    int used = 0;
    while (used < count && rest > 0) {
        iovec &view = some[static_cast<std::size_t>(used++)];
        if (static_cast<std::int64_t>(view.iov_len) > rest) view.iov_len = static_cast<std::size_t>(rest);
        rest -= static_cast<std::int64_t>(view.iov_len);
    }
    return used == 0 ? 0 : preadv(fd, some.data(), used, offset);
}

void Faults::inject(const Fault &fault) {
    std::lock_guard<std::mutex> lock(mutex_);
    faults_.push_back(fault);
    update();
}

void Faults::heal() {
    std::lock_guard<std::mutex> lock(mutex_);
    faults_.clear();
    update();
}

void Faults::hold(bool held) {
    std::lock_guard<std::mutex> lock(mutex_);
    held_ = held;
    update();
    released_.notify_all();
}

void Faults::end() {
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    released_.notify_all();
}

void Faults::record(bool recording) {
    std::lock_guard<std::mutex> lock(mutex_);
    recording_ = recording;
    calls_.clear();
    update();
}

std::vector<ReadCall> Faults::calls() {
    std::lock_guard<std::mutex> lock(mutex_);
    return calls_;
}

void Faults::update() { active_.store(held_ || recording_ || !faults_.empty(), std::memory_order_release); }

}  // namespace headrace
