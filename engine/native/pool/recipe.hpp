// Recipe: how an expert's bytes get into a slot: the ranges to read, and what is made of those that cannot be used as stored.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "reading/load.hpp"

namespace headrace {

// Memory of a tensor in all slots of a pool.
struct SlotMemory {
    std::uint8_t *data = nullptr;
    std::int64_t slot_bytes = 0;
    std::uint8_t *at(std::int32_t slot) const { return data + slot * slot_bytes; }
};

// A byte range of every expert, read into its slot, or into staging memory if `slots.data` is null.
struct Source {
    const std::int32_t *file;    // by expert
    const std::int64_t *offset;  // by expert
    std::int64_t size;
    SlotMemory slots;
    std::int64_t staging;  // offset in the staging memory
    std::int32_t section;  // of a packed record, whose checksum is known; -1: none
    std::int32_t joined;   // number of the codes that it is a stream of; -1: of none
};

enum class Making { WIDEN_BF16, WIDEN_F16, JOIN, BIAS_F32, BIAS_F16, BIAS_BF16 };

// A tensor that is made when all ranges are there. The bias kinds read the scales from their slot.
struct Made {
    Making how;
    std::vector<std::int64_t> staging;  // offsets of the parts
    std::vector<std::size_t> sizes;     // bytes of the parts
    int bits = 0;                       // of joined codes
    double zero = 0;                    // code of a zero weight, for biases
    SlotMemory scales;
    SlotMemory slots;
};

struct Recipe {
    std::vector<Source> sources;
    std::vector<Made> made;
    std::size_t staging_bytes = 0;
    bool keeps_staging = false;           // the caller takes the staging memory
    const std::uint32_t *checksums = nullptr;  // [experts, columns], by section; null: not verified
    std::int64_t columns = 0;

    // The ranges of a load, whose staging memory has been made.
    void ranges(const Load &load, std::vector<Range> &found) const;
    // Divides what is made into parts that do not depend on each other. Once, before the first load. `cached`: reads are from
    // the page cache, so that small ones cost little: the streams of large codes are read in slices, and a slice is joined as
    // soon as it is there.
    void divide(bool cached);
    // The number of parts that are made before all ranges are there; they are the first ones.
    std::size_t early() const { return early_; }
    // Verifies what has arrived; returns the number of parts. A failure is left in the load.
    std::size_t arrive(Load &load) const;
    // Makes a part of what has arrived.
    Failure make_part(const Load &load, std::size_t part, Worker &worker) const;
    // The first file that an expert's bytes are in, and the lowest offset there.
    std::pair<std::int32_t, std::int64_t> begin(std::int32_t expert) const;
    // Bytes of the largest slice that is made at once.
    std::size_t largest() const;

  private:
    // Bytes of a tensor that is made: of a joined one some, of others all.
    struct Slice {
        std::size_t made = 0;  // number in `made`
        std::size_t begin = 0, bytes = 0;
    };
    std::vector<std::vector<Slice>> parts_;
    std::vector<std::int64_t> codes_;       // bytes of codes, by their number
    std::vector<std::int32_t> first_part_;  // of the codes that are joined early, by their number; -1: others
    std::size_t early_ = 0;
    bool verify(Load &load) const;
    void make(const Slice &slice, const Load &load, std::uint8_t *into) const;
};

}  // namespace headrace
