// Throttle: simulates a disk of a given bandwidth for all threads of a reader (`ssd_gbps`).
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>

namespace headrace {

// The disk serves one request after the other without a pause: if a sleep takes too long, the next read makes up for it.
// Idle time is lost.
class Throttle {
  public:
    explicit Throttle(double gbps) : bytes_per_s_(gbps * 1e9) {}
    bool limited() const { return bytes_per_s_ > 0; }
    // From now on the disk has this bandwidth; 0 for that of the real one.
    void limit(double gbps) { bytes_per_s_ = gbps * 1e9; }
    // The time at which the disk has delivered `size` more bytes that were requested at `requested`, in seconds.
    double end(std::int64_t size, double requested) {
        const double bytes_per_s = bytes_per_s_;
        if (bytes_per_s <= 0) return requested;
        std::lock_guard<std::mutex> lock(mutex_);
        free_at_ = std::max(free_at_, requested) + static_cast<double>(size) / bytes_per_s;
        return free_at_;
    }

  private:
    std::atomic<double> bytes_per_s_;
    double free_at_ = 0;
    std::mutex mutex_;
};

}  // namespace headrace
