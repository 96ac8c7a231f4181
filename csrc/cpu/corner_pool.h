// What the kernels of corner_pool are given, for both layouts and all instruction sets.
#pragma once

#include <cstdint>

#include "../corner_pool.h"
#include "work.h"

namespace fastnets::corner {

// Tensors are dense, and seen as [images][rows][columns][lanes]. Where neighbours in memory are scanned side by side,
// they are the lanes; where they are scanned one after another, there is one lane, and they are the columns.
struct Problem {
  const void *vertical = nullptr, *horizontal = nullptr;  // the inputs that are scanned along rows and along columns
  const void* dy = nullptr;
  void* out = nullptr;  // y or dx
  int64_t images = 1, rows = 1, columns = 1, lanes = 1;
  int64_t chunk = 1;     // of lanes in a task; of rows where there is one lane
  bool reverse = false;  // whether scans begin at the last row and column
  bool streams = false;  // whether the result is more than the caches keep for its reader

  int64_t chunks() const { return (lanes + chunk - 1) / chunk; }
  // Where a scan of `length` is at its step i.
  int64_t place(int64_t i, int64_t length) const { return reverse ? length - 1 - i : i; }
};

// Called with a range of tasks, of which there are images * chunks(). Tasks write disjoint memory.
using Kernel = void (*)(const Problem&, int64_t begin, int64_t end);

// What to scan: one input, or two whose results are added.
enum class Pass { kForward, kSum, kBackwardFirst, kBackwardLast };

}  // namespace fastnets::corner
