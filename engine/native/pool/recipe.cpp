#include "pool/recipe.hpp"

#include <algorithm>

#include "arrival/arrival.hpp"

namespace headrace {
namespace {

constexpr std::int64_t LEAST_PART = 256 << 10;  // bytes that are made

std::uint8_t *place(const Source &source, const Load &load) {
    if (source.slots.data != nullptr) return source.slots.at(load.slot);
    return load.staging.data() + source.staging;
}

}  // namespace

void Recipe::ranges(const Load &load, std::vector<Range> &found) const {
    found.clear();
    for (const Source &source : sources) {
        found.push_back({source.file[load.expert], source.offset[load.expert], source.size, place(source, load),
                         source.slots.data != nullptr});
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

void Recipe::make(const Made &one, const Load &load, std::uint8_t *into) const {
    const auto part = [&](std::size_t i) { return load.staging.data() + one.staging[i]; };
    const std::size_t bytes = static_cast<std::size_t>(one.slots.slot_bytes);
    switch (one.how) {
        case Making::WIDEN_BF16:
            widen_bf16(reinterpret_cast<const std::uint16_t *>(part(0)), reinterpret_cast<float *>(into), bytes / 4);
            break;
        case Making::WIDEN_F16:
            widen_f16(reinterpret_cast<const std::uint16_t *>(part(0)), reinterpret_cast<float *>(into), bytes / 4);
            break;
        case Making::JOIN: {
            const std::uint8_t *streams[8];
            for (std::size_t i = 0; i < one.sizes.size(); ++i) streams[i] = part(i);
            join_planes(streams, one.sizes.data(), static_cast<int>(one.sizes.size()), one.bits, into);
            break;
        }
        case Making::BIAS_F32:
            derive_biases_f32(reinterpret_cast<const float *>(one.scales.at(load.slot)), one.zero,
                              reinterpret_cast<float *>(into), bytes / 4);
            break;
        case Making::BIAS_F16:
            derive_biases_f16(reinterpret_cast<const std::uint16_t *>(one.scales.at(load.slot)), one.zero,
                              reinterpret_cast<std::uint16_t *>(into), bytes / 2);
            break;
        case Making::BIAS_BF16:
            derive_biases_bf16(reinterpret_cast<const std::uint16_t *>(one.scales.at(load.slot)), one.zero,
                               reinterpret_cast<std::uint16_t *>(into), bytes / 2);
            break;
    }
}

std::size_t Recipe::largest() const {
    std::size_t most = 0;
    for (const Made &one : made) most = std::max(most, static_cast<std::size_t>(one.slots.slot_bytes));
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

// Biases are derived from scales, which may be made themselves: these stay together, in this order. Small parts are put
// together, because handing one to another thread takes some microseconds.
void Recipe::divide() {
    parts_.clear();
    std::int64_t bytes = LEAST_PART;
    for (std::size_t i = 0; i < made.size(); ++i) {
        if (made[i].how >= Making::BIAS_F32) continue;
        if (bytes >= LEAST_PART) {
            parts_.emplace_back();
            bytes = 0;
        }
        parts_.back().push_back(i);
        bytes += made[i].slots.slot_bytes;
    }
    for (std::size_t i = 0; i < made.size(); ++i) {
        if (made[i].how < Making::BIAS_F32) continue;
        const auto has_scales = [&](const std::vector<std::size_t> &part) {
            return std::any_of(part.begin(), part.end(),
                               [&](std::size_t other) { return made[other].slots.data == made[i].scales.data; });
        };
        const auto found = std::find_if(parts_.begin(), parts_.end(), has_scales);
        if (found != parts_.end()) found->push_back(i);
        else if (!parts_.empty()) parts_.back().push_back(i);
        else parts_.push_back({i});
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
    for (const std::size_t number : parts_[part]) {
        const Made &one = made[number];
        std::uint8_t *into = one.slots.at(load.slot);
        if (worker.device == nullptr) {
            make(one, load, into);
            continue;
        }
        make(one, load, room);
        const std::size_t bytes = static_cast<std::size_t>(one.slots.slot_bytes);
        int code = worker.device->copy(into, room, bytes, worker.scratch);
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
