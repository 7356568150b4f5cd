#include "arrival.hpp"
#include "clones.hpp"
#include "halves.hpp"

namespace headrace {

HEADRACE_CLONES void derive_biases_f32(const float *scales, double zero, float *biases, std::size_t count) {
    const float factor = static_cast<float>(-zero);
    for (std::size_t i = 0; i < count; ++i) put(biases, i, get(scales, i) * factor);
}

HEADRACE_CLONES void derive_biases_f16(const std::uint16_t *scales, double zero, std::uint16_t *biases, std::size_t count) {
    const float factor = f16_to_float(float_to_f16(static_cast<float>(-zero)));
    for (std::size_t i = 0; i < count; ++i) put(biases, i, float_to_f16(f16_to_float(get(scales, i)) * factor));
}

HEADRACE_CLONES void derive_biases_bf16(const std::uint16_t *scales, double zero, std::uint16_t *biases, std::size_t count) {
    const float factor = static_cast<float>(-zero);
    for (std::size_t i = 0; i < count; ++i) put(biases, i, float_to_bf16(bf16_to_float(get(scales, i)) * factor));
}

}  // namespace headrace
