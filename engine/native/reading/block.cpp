#include "reading/block.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace headrace {
namespace {

constexpr std::size_t MOST_VIEWS = 1024;  // of one preadv: UIO_MAXIOV

std::int64_t up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

std::int64_t transferred_bytes(const Block &block, std::int64_t alignment) {
    return up(block.offset % alignment + block.size, alignment);
}

void BlockReader::lay_out(const Block &block, const Piece *pieces, const ReadRules &rules, std::int64_t memory,
                          std::uint8_t *scratch, std::int64_t begin, std::int64_t transferred, bool device) {
    views_.clear();
    copies_.clear();
    const auto view = [this](std::uint8_t *at, std::int64_t size) {
        if (size > 0) views_.push_back({at, static_cast<std::size_t>(size)});
    };
    bool by_device = false;  // of the piece at hand
    const auto copy = [&](std::uint8_t *into, const std::uint8_t *from, std::int64_t size) {
        if (size > 0) copies_.push_back({into, from, size, by_device});
    };
    std::int64_t done = 0, at = block.offset - begin;  // bytes of the read that have a destination; place of the next piece
    for (std::uint32_t i = block.first; i < block.first + block.count; ++i) {
        const Piece &piece = pieces[i];
        const std::int64_t first = up(at, rules.alignment);
        const std::int64_t last = (at + piece.size) / rules.alignment * rules.alignment;
        const auto address = reinterpret_cast<std::uintptr_t>(piece.into + (first - at));
        by_device = device && piece.slot;
        if (!by_device && memory != 0 && last - first >= rules.least && address % static_cast<std::uintptr_t>(memory) == 0) {
            view(scratch + done, first - done);
            view(piece.into + (first - at), last - first);
            copy(piece.into, scratch + at, first - at);
            copy(piece.into + (last - at), scratch + last, at + piece.size - last);
            done = last;
        } else {
            copy(piece.into, scratch + at, piece.size);
        }
        at += piece.size;
    }
    view(scratch + done, transferred - done);
}

bool BlockReader::read_fully(int fd, iovec *views, std::size_t count, std::int64_t offset, std::int64_t needed,
                             const Block &block, const ReadRules &rules, Faults &faults, bool speculative,
                             Failure &failure) {
    std::int64_t done = 0;
    while (done < needed) {
        const int used = static_cast<int>(std::min(count, MOST_VIEWS));
        ssize_t got = faults.read(block.file, fd, views, used, offset + done, speculative);
        if (got < 0) {
            if (errno == EINTR) continue;
            failure = {Failure::READ, errno, block.file, block.offset, -1};
            return false;
        }
        if (done + got < needed) {  // a short read continues where it stopped, in whole units
            got -= got % rules.alignment;
            std::int64_t dropped = got;
            while (count > 0 && dropped >= static_cast<std::int64_t>(views->iov_len)) {
                dropped -= static_cast<std::int64_t>(views->iov_len);
                ++views;
                --count;
            }
            if (count > 0) {
                views->iov_base = static_cast<std::uint8_t *>(views->iov_base) + dropped;
                views->iov_len -= static_cast<std::size_t>(dropped);
            }
        }
        if (got == 0) {
            failure = {Failure::END_OF_FILE, 0, block.file, block.offset, -1};
            return false;
        }
        done += got;
    }
    return true;
}

std::int64_t BlockReader::read(int fd, const Block &block, const Piece *pieces, const ReadRules &rules, std::int64_t memory,
                               const Scratch &scratch, DeviceCopy *device, Faults &faults, bool speculative,
                               Failure &failure) {
    const std::int64_t begin = block.offset / rules.alignment * rules.alignment;
    const std::int64_t needed = block.offset + block.size - begin;
    const std::int64_t all = transferred_bytes(block, rules.alignment);
    lay_out(block, pieces, rules, memory, scratch.data, begin, all, device != nullptr);
    if (rules.apart) {
        std::int64_t offset = begin, rest = needed;
        for (iovec one : views_) {
            const std::int64_t size = static_cast<std::int64_t>(one.iov_len);
            if (rest <= 0) break;
            if (!read_fully(fd, &one, 1, offset, std::min(size, rest), block, rules, faults, speculative, failure)) return -1;
            offset += size;
            rest -= size;
        }
    } else if (!read_fully(fd, views_.data(), views_.size(), begin, needed, block, rules, faults, speculative, failure)) {
        return -1;
    }
    int code = 0;
    bool queued = false;
    for (const Copy &one : copies_) {
        queued = queued || one.by_device;
        if (!one.by_device) {
            std::memcpy(one.into, one.from, static_cast<std::size_t>(one.size));
        } else if ((code = device->copy(one.into, one.from, static_cast<std::size_t>(one.size), scratch)) != 0) {
            break;
        }
    }
    if (queued && code == 0) code = device->finish(scratch);
    if (code != 0) {
        failure = {Failure::DEVICE, code, block.file, block.offset, -1};
        return -1;
    }
    return all;
}

}  // namespace headrace
