#include "crc32_fold.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#define HEADRACE_FOLDS __attribute__((target("pclmul,sse4.1")))
#elif defined(__ARM_FEATURE_AES) || (defined(__aarch64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__))
#include <arm_neon.h>
#if defined(__ARM_FEATURE_AES)
#define HEADRACE_FOLDS
#else
#include <sys/auxv.h>
#define HEADRACE_FOLDS __attribute__((target("+crypto")))
#endif
#endif

namespace headrace {

#ifdef HEADRACE_FOLDS
namespace {

// x^power modulo the polynomial, bits reversed and moved up by one for the product of reversed numbers.
constexpr std::uint64_t power_of_x(int power) {
    std::uint32_t value = 0x80000000u;
    for (int i = 0; i < power; ++i) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
    return std::uint64_t{value} << 1;
}

// Factors that move a lane over `bits` bits: of its lower and of its upper half.
template <int BITS>
struct Factors {
    static constexpr std::uint64_t LOWER = power_of_x(BITS + 32), UPPER = power_of_x(BITS - 32);
};

#if defined(__x86_64__)
using Lane = __m128i;

HEADRACE_FOLDS inline Lane load(const std::uint8_t *from) { return _mm_loadu_si128(reinterpret_cast<const Lane *>(from)); }
HEADRACE_FOLDS inline void store(Lane lane, std::uint8_t *to) { _mm_storeu_si128(reinterpret_cast<Lane *>(to), lane); }
HEADRACE_FOLDS inline Lane first(std::uint32_t state) { return _mm_cvtsi32_si128(static_cast<int>(state)); }
HEADRACE_FOLDS inline Lane add(Lane a, Lane b) { return _mm_xor_si128(a, b); }

template <int BITS>
HEADRACE_FOLDS inline Lane move(Lane lane) {
    const Lane factors = _mm_set_epi64x(Factors<BITS>::UPPER, Factors<BITS>::LOWER);
    return add(_mm_clmulepi64_si128(lane, factors, 0x00), _mm_clmulepi64_si128(lane, factors, 0x11));
}
#else
using Lane = uint64x2_t;

HEADRACE_FOLDS inline Lane load(const std::uint8_t *from) { return vreinterpretq_u64_u8(vld1q_u8(from)); }
HEADRACE_FOLDS inline void store(Lane lane, std::uint8_t *to) { vst1q_u8(to, vreinterpretq_u8_u64(lane)); }
HEADRACE_FOLDS inline Lane first(std::uint32_t state) { return vsetq_lane_u64(state, vdupq_n_u64(0), 0); }
HEADRACE_FOLDS inline Lane add(Lane a, Lane b) { return veorq_u64(a, b); }

template <int BITS>
HEADRACE_FOLDS inline Lane move(Lane lane) {
    const poly64_t lower = static_cast<poly64_t>(vgetq_lane_u64(lane, 0));
    const poly64x2_t factors = vreinterpretq_p64_u64(vdupq_n_u64(Factors<BITS>::UPPER));
    return add(vreinterpretq_u64_p128(vmull_p64(lower, static_cast<poly64_t>(Factors<BITS>::LOWER))),
               vreinterpretq_u64_p128(vmull_high_p64(vreinterpretq_p64_u64(lane), factors)));
}
#endif

}  // namespace

bool can_fold() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#elif defined(__ARM_FEATURE_AES)
    return true;
#else
    return (getauxval(AT_HWCAP) & HWCAP_PMULL) != 0;
#endif
}

HEADRACE_FOLDS void fold(const std::uint8_t *data, std::size_t size, std::uint32_t state, std::uint8_t *folded) {
    Lane a = add(load(data), first(state)), b = load(data + 16), c = load(data + 32), d = load(data + 48);
    for (std::size_t at = FOLDED; at < size; at += FOLDED) {
        a = add(move<512>(a), load(data + at));
        b = add(move<512>(b), load(data + at + 16));
        c = add(move<512>(c), load(data + at + 32));
        d = add(move<512>(d), load(data + at + 48));
    }
    b = add(move<128>(a), b);
    c = add(move<128>(b), c);
    store(add(move<128>(c), d), folded);
}
#else

bool can_fold() { return false; }
void fold(const std::uint8_t *, std::size_t, std::uint32_t, std::uint8_t *) {}
#endif

}  // namespace headrace
