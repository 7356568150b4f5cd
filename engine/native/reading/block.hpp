// Block reads: one block of a file to its destinations, past the page cache if required.
//
// Direct reads start and end at multiples of `alignment` bytes of the file. Whole units go straight to their destination if
// its address is a multiple of `memory`; all other bytes pass through aligned scratch memory and are copied.
#pragma once
#include <cstdint>
#include <vector>

#include "device/device_copy.hpp"
#include "reading/faults.hpp"
#include "reading/ranges.hpp"

namespace headrace {

// Bytes that are read from the file for a block: whole units.
std::int64_t transferred_bytes(const Block &block, std::int64_t alignment);

// How files are read.
struct ReadRules {
    std::int64_t alignment = 1;  // unit of reads in the file, bytes; 1: through the page cache
    std::int64_t least = 1;      // smallest destination of its own, bytes: smaller ones are copied
    bool apart = false;          // one destination a call, for a system that checks each alone (macOS)
};

// Why a load failed.
struct Failure {
    enum Kind { NONE, READ, END_OF_FILE, CANCELLED, CHECKSUM, DEVICE, MEMORY };
    Kind kind = NONE;
    int code = 0;               // errno, or the code of the device's driver
    std::int32_t file = -1;
    std::int64_t at = 0;        // byte of the file at which the block begins
    std::int32_t section = -1;  // whose checksum differs
};

// Reads blocks for one thread, which keeps the lists of destinations between reads.
class BlockReader {
  public:
    // Reads `block` whose destinations are `pieces`. `memory`: alignment of destinations, bytes; 0: always through scratch
    // memory. With `device`, all bytes of slots pass through scratch memory, and the device copies them. Returns the bytes
    // read from the file, including alignment; -1 with the reason in `failure`.
    std::int64_t read(int fd, const Block &block, const Piece *pieces, const ReadRules &rules, std::int64_t memory,
                      const Scratch &scratch, DeviceCopy *device, Faults &faults, bool speculative, Failure &failure);

  private:
    struct Copy {
        std::uint8_t *into;
        const std::uint8_t *from;
        std::int64_t size;
        bool by_device;
    };
    void lay_out(const Block &block, const Piece *pieces, const ReadRules &rules, std::int64_t memory, std::uint8_t *scratch,
                 std::int64_t begin, std::int64_t transferred, bool device);
    bool read_fully(int fd, iovec *views, std::size_t count, std::int64_t offset, std::int64_t needed, const Block &block,
                    const ReadRules &rules, Faults &faults, bool speculative, Failure &failure);
    std::vector<iovec> views_;
    std::vector<Copy> copies_;
};

}  // namespace headrace
