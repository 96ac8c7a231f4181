// What the kernels of inverted_residual are given, for all instruction sets.
#pragma once

#include "../inverted_residual.h"
#include "pointwise_conv2d.h"
#include "squeeze_excitation.h"

namespace fastnets::inverted {

using pointwise::kPanel;

// Pointwise convolutions multiply X, the depthwise one T; results are Y.
template <typename X, typename Y = pointwise::Number<X>>
struct Problem {
  using T = pointwise::Number<X>;
  Convolution g;                     // of the depthwise convolution, of all hidden channels
  pointwise::Pixels<const T> x;      // null where it is bytes
  int64_t in = 0;                    // channels of x
  pointwise::ProblemOf<X> expand;    // its w is null where the depthwise convolution reads x; its x is null where bytes
                                     // are made of each strip of x
  const float* depthwise = nullptr;  // [panel][tap or bias][channel of the panel]
  Activation activation = Activation::kNone;
  squeeze::Gate<X> gate;               // of what the depthwise convolution gives; none in int8
  pointwise::ProblemOf<X, Y> project;  // its x: what the depthwise convolution gives
  Levels levels, hidden_levels;        // of x and of that, in int8
  int64_t strips = 1;                  // pieces that the rows of an image's result are cut into

  // Whether what the depthwise convolution reads is written to scratch.
  bool is_made() const { return expand.w || !x.data; }
  int64_t hidden_panels() const { return ceil_div(g.c, kPanel); }
  // The scratch that the depthwise convolution leaves to `project`. Few channels lie panel by panel; many pixel by
  // pixel, so that a sum is one loop, and an odd number of pairs of cache lines apart, or pixels would share sets of a
  // cache.
  bool by_pixel() const { return g.c >= 256; }
  int64_t hidden_pixel() const { return (by_pixel() ? hidden_panels() | 1 : hidden_panels()) * kPanel; }  // its size
  pointwise::Pixels<X> hidden(X* data, int64_t pixels) const {
    if (by_pixel()) return {data, hidden_pixel()};
    return {data, kPanel, pixels * kPanel};
  }
  int64_t row_sums() const { return gate.is_there() ? g.oh * g.c : 0; }  // of an image
  int64_t units() const { return g.n * strips; }
  // Of a unit, a strip of an image: its rows of the result.
  Range rows(int64_t unit) const { return share(g.oh, unit % strips, strips); }
  // The rows of x that those need.
  Range source_rows(Range rows) const {
    const int64_t first = rows.begin * g.sh - g.ph, last = (rows.end - 1) * g.sh - g.ph + (g.kh - 1) * g.dh + 1;
    return {std::clamp<int64_t>(first, 0, g.h), std::clamp<int64_t>(last, 0, g.h)};
  }
};

}  // namespace fastnets::inverted
