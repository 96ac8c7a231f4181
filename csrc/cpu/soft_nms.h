// Soft-NMS on a CPU: what the kernels of one category are given.
#pragma once

#include <array>
#include <cstdint>

#include "../soft_nms.h"

namespace fastnets {

// The places of the bits that are set in a byte, one after the other.
inline constexpr std::array<std::array<int32_t, 8>, 256> kSetBits = [] {
  std::array<std::array<int32_t, 8>, 256> places{};
  for (int byte = 0; byte < 256; ++byte)
    for (int bit = 0, j = 0; bit < 8; ++bit)
      if (byte >> bit & 1) places[byte][j++] = bit;
  return places;
}();

// The boxes of one category, an array for each property. Room for a vector lies behind the last box. `places` is for
// the kernels: a place for each lane of whole vectors of boxes, and one more vector.
template <typename A>
struct BoxArrays {
  A *x1, *y1, *x2, *y2, *area, *score;
  int64_t* index;
  int32_t* places;

  static constexpr int64_t kRoom = 16;
  static constexpr int64_t bytes(int64_t n) {
    return (n + kRoom) * (6 * sizeof(A) + sizeof(int64_t)) + (n + 2 * kRoom) * sizeof(int32_t);
  }

  // Lays the arrays out in memory of bytes(n).
  BoxArrays(void* memory, int64_t n) {
    index = static_cast<int64_t*>(memory);
    A* next = reinterpret_cast<A*>(index + n + kRoom);
    for (A** array : {&x1, &y1, &x2, &y2, &area, &score}) *array = next, next += n + kRoom;
    places = reinterpret_cast<int32_t*>(next);
  }

  void move(int64_t from, int64_t to) const {
    for (A* array : {x1, y1, x2, y2, area, score}) array[to] = array[from];
    index[to] = index[from];
  }

  void swap(int64_t i, int64_t j) const {
    for (A* array : {x1, y1, x2, y2, area, score}) std::swap(array[i], array[j]);
    std::swap(index[i], index[j]);
  }
};

// Takes boxes out of the first n, whose areas need not be set. Writes their indices and scores; returns how many.
template <typename A>
using SoftNmsKernel = int64_t (*)(const BoxArrays<A>& boxes, int64_t n, const SoftNms<A>& arguments, int64_t* keep,
                                  A* decayed);

template <typename A>
struct SoftNmsKernels {
  SoftNmsKernel<A> ours, mmcv, paper;

  SoftNmsKernel<A> by(Rules rules) const { return rules == Rules::kOurs ? ours : rules == Rules::kMmcv ? mmcv : paper; }
};

}  // namespace fastnets
