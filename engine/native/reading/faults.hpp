// Faults: the seam of the reader at which tests make reads slow, short or failing, and count them.
#pragma once
#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

namespace headrace {

// What happens to reads of `file` (-1: any) that touch the bytes `begin` .. `end`.
struct Fault {
    std::int32_t file = -1;
    std::int64_t begin = 0;
    std::int64_t end = INT64_MAX;
    int error = 0;           // errno; 0: none. EINTR is repeated by the reader, as the system's is.
    std::int64_t most = -1;  // bytes that a call delivers at most; 0: end of file; -1: no limit
    double delay_s = 0;
    std::int64_t times = -1;  // calls that are affected; -1: all
    bool skip = false;        // report success without reading
};

// One system call: where it read, and the address and size of each destination.
struct ReadCall {
    std::int32_t file;
    std::int64_t offset;
    std::vector<iovec> into;
    bool speculative;
};

// Stands between the reader and preadv. Without a fault it costs one load of an atomic.
class Faults {
  public:
    ssize_t read(std::int32_t file, int fd, const iovec *into, int count, std::int64_t offset, bool speculative);
    void inject(const Fault &fault);
    void hold(bool held);       // reads wait until they are released
    void end();                 // no read waits any more
    void record(bool recording);  // starts with an empty list
    void heal();                // removes all faults; a hold and the recording stay
    std::vector<ReadCall> calls();

  private:
    void update();
    std::atomic<bool> active_{false};
    std::mutex mutex_;
    std::condition_variable released_;
    std::vector<Fault> faults_;
    std::vector<ReadCall> calls_;
    bool held_ = false;
    bool ended_ = false;
    bool recording_ = false;
};

}  // namespace headrace
