// CRC-32 by folding: four lanes of 128 bits multiplied without carries (PCLMULQDQ on x86-64, PMULL on ARM). Method: Gopal et
// al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009.
#pragma once
#include <cstddef>
#include <cstdint>

namespace headrace {

constexpr std::size_t FOLDED = 64;  // bytes per step

// Whether this build has the function and this processor its instructions.
bool can_fold();

// Fold `size` bytes, a multiple of FOLDED and not 0, that follow the state `state` (the CRC inverted), into 16 bytes. The
// state after `data` is the state after those 16 bytes from 0.
void fold(const std::uint8_t *data, std::size_t size, std::uint32_t state, std::uint8_t *folded);

}  // namespace headrace
