// NMS on a CPU: what its kernels are given.
#pragma once

#include <cstdint>

namespace fastnets {

// Boxes, an array for each property, with room for a vector behind the last.
template <typename A>
struct NmsBoxes {
  A *x1, *y1, *x2, *y2, *area;

  static constexpr int64_t kRoom = 16;
  static constexpr int64_t count(int64_t n) { return 5 * (n + kRoom); }

  // Lays the arrays out in memory for count(n) numbers.
  NmsBoxes(A* memory, int64_t n) {
    for (A** array : {&x1, &y1, &x2, &y2, &area}) *array = memory, memory += n + kRoom;
  }
};

template <typename A>
struct NmsKernels {
  // Says of boxes [begin, end) whether one of kept [kept_begin, kept_end) suppresses them.
  void (*test)(const NmsBoxes<A>& kept, int64_t kept_end, const NmsBoxes<A>& boxes, int64_t begin, int64_t end,
               A threshold, bool* suppressed);
  // Keeps those of boxes [begin, end) that nothing suppresses, themselves included; returns how many there are then.
  int64_t (*keep)(const NmsBoxes<A>& kept, int64_t count, const NmsBoxes<A>& boxes, int64_t begin, int64_t end,
                  A threshold, const bool* suppressed, int64_t* positions);
};

}  // namespace fastnets
