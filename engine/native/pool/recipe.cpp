#include "pool/recipe.hpp"

#include <algorithm>

#include "arrival/arrival.hpp"

namespace headrace {
namespace {

constexpr std::size_t PART = 192 << 10;  // bytes that are made; whole words of each stream that joins, whatever its width

std::uint8_t *place(const Source &source, const Load &load) {
    if (source.slots.data != nullptr) return source.slots.at(load.slot);
    return load.staging.data() + source.staging;
}

}  // namespace

void Recipe::ranges(const Load &load, std::vector<Range> &found) const {
    found.clear();
    for (const Source &source : sources) {
        const Range whole{source.file[load.expert], source.offset[load.expert], source.size, place(source, load),
                          source.slots.data != nullptr};
        const std::int32_t first = source.joined < 0 ? -1 : first_part_[static_cast<std::size_t>(source.joined)];
        if (first < 0) {
            found.push_back(whole);
            continue;
        }
        const std::int64_t share = codes_[static_cast<std::size_t>(source.joined)] / source.size;
        const std::int64_t step = static_cast<std::int64_t>(PART) / share;
        for (std::int64_t at = 0; at < source.size; at += step) {
            Range slice = whole;
            slice.offset += at;
            slice.into += at;
            slice.size = std::min(step, source.size - at);
            slice.part = first + static_cast<std::int32_t>(at / step);
            found.push_back(slice);
        }
    }
}

bool Recipe::verify(Load &load) const {
    if (checksums == nullptr) return true;
    const std::uint32_t *expected = checksums + load.expert * columns;
    for (const Source &source : sources) {
        if (source.section < 0) continue;
        if (crc32(place(source, load), static_cast<std::size_t>(source.size)) == expected[source.section]) continue;
        load.failure.kind = Failure::CHECKSUM;
        load.failure.section = source.section;
        return false;
    }
    return true;
}

void Recipe::make(const Slice &slice, const Load &load, std::uint8_t *into) const {
    const Made &one = made[slice.made];
    const auto part = [&](std::size_t i) { return load.staging.data() + one.staging[i]; };
    switch (one.how) {
        case Making::WIDEN_BF16:
            widen_bf16(reinterpret_cast<const std::uint16_t *>(part(0)), reinterpret_cast<float *>(into), slice.bytes / 4);
            break;
        case Making::WIDEN_F16:
            widen_f16(reinterpret_cast<const std::uint16_t *>(part(0)), reinterpret_cast<float *>(into), slice.bytes / 4);
            break;
        case Making::JOIN: {
            const std::uint8_t *streams[MOST_PLANES];
            std::size_t sizes[MOST_PLANES];
            const auto all = static_cast<std::size_t>(one.slots.slot_bytes);
            for (std::size_t i = 0; i < one.sizes.size(); ++i) {
                const std::size_t share = all / one.sizes[i];  // one byte in so many is in this stream
                streams[i] = part(i) + slice.begin / share;
                sizes[i] = slice.bytes / share;
            }
            join_planes(streams, sizes, static_cast<int>(one.sizes.size()), one.bits, into);
            break;
        }
        case Making::BIAS_F32:
            derive_biases_f32(reinterpret_cast<const float *>(one.scales.at(load.slot)), one.zero,
                              reinterpret_cast<float *>(into), slice.bytes / 4);
            break;
        case Making::BIAS_F16:
            derive_biases_f16(reinterpret_cast<const std::uint16_t *>(one.scales.at(load.slot)), one.zero,
                              reinterpret_cast<std::uint16_t *>(into), slice.bytes / 2);
            break;
        case Making::BIAS_BF16:
            derive_biases_bf16(reinterpret_cast<const std::uint16_t *>(one.scales.at(load.slot)), one.zero,
                               reinterpret_cast<std::uint16_t *>(into), slice.bytes / 2);
            break;
    }
}

std::size_t Recipe::largest() const {
    std::size_t most = 0;
    for (const std::vector<Slice> &part : parts_) {
        for (const Slice &slice : part) most = std::max(most, slice.bytes);
    }
    return most;
}

std::pair<std::int32_t, std::int64_t> Recipe::begin(std::int32_t expert) const {
    std::pair<std::int32_t, std::int64_t> first{0, 0};
    bool any = false;
    for (const Source &source : sources) {
        const std::pair<std::int32_t, std::int64_t> at{source.file[expert], source.offset[expert]};
        if (!any || at < first) first = at;
        any = true;
    }
    return first;
}

// Codes are joined in slices. Biases are derived from scales, which may be made themselves: these stay together, in this
// order. Small tensors are put together, because handing a part to another thread takes some microseconds.
void Recipe::divide(bool cached) {
    parts_.clear();
    codes_.clear();
    for (const Source &source : sources) {
        if (source.joined < 0) continue;
        const auto number = static_cast<std::size_t>(source.joined);
        codes_.resize(std::max(codes_.size(), number + 1), 0);
        codes_[number] += source.size;
    }
    first_part_.assign(codes_.size(), -1);
    std::int32_t count = 0;
    for (std::size_t i = 0; i < codes_.size(); ++i) {
        const auto all = static_cast<std::size_t>(codes_[i]);
        if (!cached || all < 2 * PART) continue;
        first_part_[i] = count;
        count += static_cast<std::int32_t>((all + PART - 1) / PART);
        if (i >= made.size()) continue;  // of a dry reader, which makes nothing
        for (std::size_t at = 0; at < all; at += PART) parts_.push_back({{i, at, std::min(PART, all - at)}});
    }
    early_ = static_cast<std::size_t>(count);
    std::size_t bytes = PART;
    const auto add = [&](const Slice &slice) {
        if (bytes >= PART) {
            parts_.emplace_back();
            bytes = 0;
        }
        parts_.back().push_back(slice);
        bytes += slice.bytes;
    };
    for (std::size_t i = 0; i < made.size(); ++i) {
        if (made[i].how >= Making::BIAS_F32 || (i < codes_.size() && first_part_[i] >= 0)) continue;
        const auto all = static_cast<std::size_t>(made[i].slots.slot_bytes);
        const std::size_t most = made[i].how == Making::JOIN ? PART : std::max<std::size_t>(all, 1);
        for (std::size_t at = 0; at < all; at += most) add({i, at, std::min(most, all - at)});
    }
    for (std::size_t i = 0; i < made.size(); ++i) {
        if (made[i].how < Making::BIAS_F32) continue;
        const auto has_scales = [&](const std::vector<Slice> &part) {
            return std::any_of(part.begin(), part.end(), [&](const Slice &other) {
                return made[other.made].slots.data == made[i].scales.data;
            });
        };
        const auto after = parts_.begin() + static_cast<std::ptrdiff_t>(made.empty() ? 0 : early_);
        const auto found = std::find_if(after, parts_.end(), has_scales);
        const Slice slice{i, 0, static_cast<std::size_t>(made[i].slots.slot_bytes)};
        if (found != parts_.end()) found->push_back(slice);
        else if (after != parts_.end()) parts_.back().push_back(slice);
        else parts_.push_back({slice});
    }
}

std::size_t Recipe::arrive(Load &load) const { return verify(load) ? parts_.size() : 0; }

Failure Recipe::make_part(const Load &load, std::size_t part, Worker &worker) const {
    Failure failure;
    std::uint8_t *room = worker.scratch.data;  // page-locked, and no read uses it now: the fastest to copy from
    if (worker.device != nullptr && worker.scratch.size < largest()) {
        worker.room.resize(std::max(worker.room.size(), largest()));
        room = worker.room.data();
    }
    for (const Slice &slice : parts_[part]) {
        std::uint8_t *into = made[slice.made].slots.at(load.slot) + slice.begin;
        if (worker.device == nullptr) {
            make(slice, load, into);
            continue;
        }
        make(slice, load, room);
        int code = worker.device->copy(into, room, slice.bytes, worker.scratch);
        if (code == 0) code = worker.device->finish(worker.scratch);
        if (code != 0) {
            failure.kind = Failure::DEVICE;
            failure.code = code;
            break;
        }
    }
    return failure;
}

}  // namespace headrace
