// Results of a convolution as pixels of a finer image, for all instruction sets.
#pragma once

#include "../packed.h"

namespace fastnets {

// Result (i * r + j) * c + k of a pixel is channel k of the fine pixel in row i and column j of the r * r in its place.
struct SubPixels {
  int64_t r = 1, c = 0;
  int64_t pixel = 0, row = 0;  // how far the fine image's pixels and rows are apart

  SubPixels() = default;
  // Of `out` results of each of `columns` pixels in a row.
  SubPixels(int64_t r, int64_t out, int64_t columns, int64_t pixel)
      : r(r), c(out / (r * r)), pixel(pixel), row(columns * r * pixel) {}

  // Of a pixel, of rows that are counted through all images.
  int64_t offset(int64_t at_row, int64_t column) const { return at_row * r * row + column * r * pixel; }
};

inline Four fine_size(int64_t n, int64_t out, int64_t h, int64_t w, int64_t r) {
  STD_TORCH_CHECK(r > 0 && r < (int64_t{1} << 15) && out % (r * r) == 0, "expected a multiple of ", r, " * ", r,
                  " results, got ", out);
  return {n, out / (r * r), h * r, w * r};
}

}  // namespace fastnets
