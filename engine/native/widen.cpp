#include <cstring>

#include "arrival.hpp"
#include "clones.hpp"
#include "halves.hpp"

namespace headrace {

HEADRACE_CLONES void widen_bf16(const std::uint16_t *from, float *to, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) put(to, i, bf16_to_float(get(from, i)));
}

HEADRACE_CLONES void widen_f16(const std::uint16_t *from, float *to, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) put(to, i, f16_to_float(get(from, i)));
}

}  // namespace headrace
