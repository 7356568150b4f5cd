// Ranges: the byte ranges of an expert, joined where they are adjacent in a file and cut into blocks.
#pragma once
#include <cstdint>
#include <vector>

namespace headrace {

// A byte range of a file and its destination, memory of the same size. `slot`: the destination is in a slot, which on a device
// is not written by the host. `part`: of what is made while the load is read, the part that needs this range; -1: none does.
struct Range {
    std::int32_t file;
    std::int64_t offset;
    std::int64_t size;
    std::uint8_t *into;
    bool slot = true;
    std::int32_t part = -1;
};

// Consecutive bytes of a block that have one destination.
struct Piece {
    std::uint8_t *into;
    std::int64_t size;
    bool slot;
};

// One read: consecutive bytes of one file, for the pieces `first` .. `first + count` of its load and one `part`.
struct Block {
    std::int32_t file;
    std::int64_t offset;
    std::int64_t size;
    std::uint32_t first;
    std::uint32_t count;
    std::int32_t part;
};

// Sort `ranges` by part, join adjacent ones of a part and cut them into blocks of at most `block_bytes`, extended to the next
// multiple of `alignment` in the file, so that no two blocks share a unit of direct reads.
void cut(std::vector<Range> &ranges, std::int64_t block_bytes, std::int64_t alignment, std::vector<Block> &blocks,
         std::vector<Piece> &pieces);

}  // namespace headrace
