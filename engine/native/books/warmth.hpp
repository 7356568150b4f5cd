// Warmth: how recently and how often an expert was used (decayed frequency; engine/cache/eviction.py is the specification).
#pragma once
#include <cmath>

namespace headrace {

// log2(2^x + 2^y), to the last bit as numpy.logaddexp2 computes it.
inline double logaddexp2(double x, double y) {
    constexpr double LOG2E = 1.442695040888963407359924681001892137;
    if (x == y) return x + 1;
    const double difference = x - y;
    if (difference > 0) return x + LOG2E * std::log1p(std::exp2(-difference));
    if (difference <= 0) return y + LOG2E * std::log1p(std::exp2(difference));
    return difference;  // not a number
}

}  // namespace headrace
