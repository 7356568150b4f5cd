#include "packing/groups.hpp"
#include "formats/streams.hpp"

namespace headrace {
namespace {

// The sums of integers below 256: float32 holds each of them exactly.
template <int SIZE>
HEADRACE_INLINE void sum_codes(const Widths &widths, Groups &out) {
    for (int g = 0; g < out.count; ++g) {
        const std::uint8_t *codes = out.codes + g * SIZE;
        std::int32_t v = 0, vv = 0;
        for (int i = 0; i < SIZE; ++i) {
            v += codes[i];
            vv += codes[i] * codes[i];
        }
        out.v[g] = static_cast<float>(v);
        out.vv[g] = static_cast<float>(vv);
        for (int level = 0; level < widths.lower; ++level) {
            std::int32_t h = 0, hh = 0, vh = 0;
            for (int i = 0; i < SIZE; ++i) {
                const std::int32_t upper = codes[i] >> widths.below[level];
                h += upper;
                hh += upper * upper;
                vh += upper * codes[i];
            }
            out.h[level][g] = static_cast<float>(h);
            out.hh[level][g] = static_cast<float>(hh);
            out.vh[level][g] = static_cast<float>(vh);
        }
    }
}

}  // namespace

HEADRACE_CLONES void keep_codes(const Source &source, const Widths &widths, Groups &out) {
    const int count = out.count * out.size, missing = widths.top - source.bits;
    const std::int64_t begin = out.number[0] * out.size;
    unpack_codes(source.weights + begin * source.bits / 8, source.bits, count, out.codes);
    for (int i = 0; i < count && missing > 0; ++i) out.codes[i] = static_cast<std::uint8_t>(out.codes[i] << missing);
    const float factor = static_cast<float>(1 << missing);
    for (int g = 0; g < out.count; ++g) {
        const float scale = affine_scale(source, out.number[g]);
        out.unit[g] = out.scale[g] = scale / factor;
        out.low[g] = out.bias[g] = affine_bias(source, out.number[g], scale);
        out.step[g] = 1;
        out.error[g] = 0;
    }
    if (out.size == 32) return sum_codes<32>(widths, out);
    if (out.size == 64) return sum_codes<64>(widths, out);
    sum_codes<128>(widths, out);
}

}  // namespace headrace
