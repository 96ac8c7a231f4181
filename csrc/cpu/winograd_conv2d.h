// What the kernels of winograd_conv2d are given, for all instruction sets.
#pragma once

#include "pointwise_conv2d.h"
#include "sub_pixels.h"

namespace fastnets::winograd {

using pointwise::kPanel;
using pointwise::Pixels;

// A tile is `side` by `side` results of all channels, made of side + 2 rows and columns of x: as many points squared.
struct Problem {
  Convolution g;
  Pixels<const float> x;
  std::shared_ptr<const std::vector<float>> zeros;  // as many as x has channels
  int64_t side = 2, chunk = 1;
  pointwise::Problem product;  // its weights: [panel][point][in][kPanel]; its x is made
  SubPixels fine;              // what results are pixels of

  int64_t points() const { return (side + 2) * (side + 2); }
  int64_t rows() const { return ceil_div(g.oh, side); }
  int64_t columns() const { return ceil_div(g.ow, side); }
  int64_t tiles() const { return g.n * rows() * columns(); }
  int64_t chunks() const { return ceil_div(tiles(), chunk); }
  Range range(int64_t i) const { return {i * chunk, std::min((i + 1) * chunk, tiles())}; }

  // A chunk's tiles as the products' x and y, [point][panel][tile][kPanel] and [point][tile][kPanel]: how far points
  // are apart, an odd number of pairs of cache lines, so that those of one tile do not share sets of a cache.
  int64_t x_point() const { return (ceil_div(g.c, kPanel) * chunk | 1) * kPanel; }
  int64_t x_chunk() const { return points() * x_point(); }
  int64_t y_point() const { return (chunk | 1) * kPanel; }
};

}  // namespace fastnets::winograd
