// Division of numbers below 2^31 by a number that the host knows, in three instructions.
//
// T. Granlund, P. Montgomery 1994, "Division by invariant integers using multiplication", figure 4.1.
#pragma once

#include <cstdint>

#include "launch.h"

namespace fastnets {

struct Divisor {
  uint32_t size = 1, factor = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t d) : size(static_cast<uint32_t>(d)) {
    while (int64_t{1} << shift < d) ++shift;
    factor = static_cast<uint32_t>((((uint64_t{1} << shift) - d) << 32) / d + 1);
  }

  __device__ uint32_t quotient(uint32_t n) const {
    return (static_cast<uint32_t>(uint64_t{n} * factor >> 32) + n) >> shift;
  }

  // The remainder; n becomes the quotient.
  __device__ uint32_t take(uint32_t& n) const {
    const uint32_t whole = n;
    n = quotient(whole);
    return whole - n * size;
  }
};

}  // namespace fastnets
