// Warmth: how recently and how often an expert was used (decayed frequency; engine/cache/eviction.py is the specification).
#pragma once
#include <cmath>

namespace headrace {

// log2(2^x + 2^y), to the last bit as numpy.logaddexp2 computes it.
inline double logaddexp2(double x, double y) {
    constexpr double LOG2E = 1.442695040888963407359924681001892137;
    if (x == y) return x + 1;
    const double difference = x - y;
    if (std::isnan(difference)) return difference;
    // A statement of its own, so that clang does not fuse the product with the sum.
    const double more = LOG2E * std::log1p(std::exp2(-std::fabs(difference)));
    return (difference > 0 ? x : y) + more;
}

}  // namespace headrace
