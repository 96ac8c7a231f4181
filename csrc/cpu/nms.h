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

// Boxes of one category, best first, and those that are kept of them. A kept box goes where its neighbours are, into
// its chunk, whose bounds grow by it.
template <typename A>
struct NmsCategory {
  static constexpr int64_t kChunk = 64;

  int64_t n, chunks;
  NmsBoxes<A> boxes;
  const int32_t* chunk_of;  // a box
  NmsBoxes<A> kept;         // NaN where none is yet
  NmsBoxes<A> bounds;       // of chunks, and the largest area: from infinity to -infinity where none is yet
  int32_t* counts;          // of chunks, and of as many more as there is room
  A threshold;
};

template <typename A>
struct NmsKernels {
  // Says of boxes [begin, end) whether a kept one suppresses them.
  void (*test)(const NmsCategory<A>&, int64_t begin, int64_t end, bool* suppressed);
  // Keeps those of boxes [begin, end) that nothing suppresses, themselves included, and writes their ranks; returns how
  // many. `recent` is memory for as many.
  int64_t (*keep)(const NmsCategory<A>&, int64_t begin, int64_t end, const bool* suppressed, const NmsBoxes<A>& recent,
                  int64_t* ranks);
};

}  // namespace fastnets
