#include "reading/ranges.hpp"

#include <algorithm>

namespace headrace {

void cut(std::vector<Range> &ranges, std::int64_t block_bytes, std::int64_t alignment, std::vector<Block> &blocks,
         std::vector<Piece> &pieces) {
    std::stable_sort(ranges.begin(), ranges.end(), [](const Range &a, const Range &b) {
        if (a.part != b.part) return a.part < b.part;
        return a.file != b.file ? a.file < b.file : a.offset < b.offset;
    });
    blocks.clear();
    pieces.clear();
    std::int64_t end = 0, stop = 0;  // of the last block in the file; where it must end
    for (const Range &range : ranges) {
        std::int64_t done = 0;
        while (done < range.size) {
            const std::int64_t at = range.offset + done;
            if (blocks.empty() || blocks.back().file != range.file || blocks.back().part != range.part || at != end ||
                end == stop) {
                blocks.push_back({range.file, at, 0, static_cast<std::uint32_t>(pieces.size()), 0, range.part});
                end = at;
                stop = (at + block_bytes + alignment - 1) / alignment * alignment;
            }
            const std::int64_t taken = std::min(range.size - done, stop - end);
            pieces.push_back({range.into + done, taken, range.slot});
            blocks.back().count += 1;
            blocks.back().size += taken;
            end += taken;
            done += taken;
        }
    }
}

}  // namespace headrace
