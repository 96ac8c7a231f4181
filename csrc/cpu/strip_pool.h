// What the kernels of strip_pool are given, for both layouts and all instruction sets.
#pragma once

#include <cstdint>

#include "work.h"

namespace fastnets::strip {

// Dense tensors [images][rows][columns][lanes]: contiguous images have one lane, and an image for each channel.
struct Problem {
  void *x = nullptr, *rows = nullptr, *columns = nullptr;  // or their gradients
  int64_t images = 1, height = 1, width = 1, lanes = 1;
  int64_t pitch = 1;              // from row to row
  int64_t chunk = 1, chunks = 1;  // of lanes, for the gradient of rows: in a task, and such in an image
  int64_t parts = 1;              // of channels_last: an image's rows are cut into so many, by its shape alone
  void* sums = nullptr;           // [image][part][column][lane] in the type of sums
  bool streams = false;           // whether dx is more than the caches keep for its reader
};

// Of channels_last `forward` leaves the sums of columns in parts, and `merge` writes their means.
enum class Pass { forward, merge, backward };

// Called with a range of tasks, of which there are images * parts * chunks; of merge images * width. Tasks write
// disjoint memory.
using Kernel = void (*)(const Problem&, int64_t begin, int64_t end);

}  // namespace fastnets::strip
