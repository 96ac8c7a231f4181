// What the kernels of depthwise_conv2d are given, for both layouts and all instruction sets.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../convolution.h"
#include "work.h"

namespace fastnets::depthwise {

constexpr int64_t kWidest = 16;  // floats in the widest vector

// Where neighbours in memory are channels; pixels, or fewer channels than lanes; pixels, as the kernels of "rows" take
// them; pixels of so few channels, as these do.
enum class Layout { kChannelsLast, kPlanar, kRows, kPixels };

// Those of sums' type, and the strides up to which "rows" takes pixels; 0: none.
struct Lanes {
  int64_t count, pixel_stride;
};

// Batch normalisation and an activation in front of the convolution, of float32 in channels_last: what this takes is
// f((x - mean) * scale + bias), and dx its gradient, not that of x.
struct Norm {
  const float *mean = nullptr, *scale = nullptr, *bias = nullptr;  // (c); null: there is none
  Activation activation = Activation::kNone;
  float* sums = nullptr;  // backward: partial sums [part][2][c], of dz and dz * (x - mean)
};

struct Problem {
  Convolution g;
  Layout layout = Layout::kPlanar;
  Activation activation = Activation::kNone;
  Operand x, w, y;             // y: the result, or its gradient
  const void* bias = nullptr;  // (o), bias_step apart
  int64_t bias_step = 1;
  Norm norm;
  Operand dx;               // no data where not asked for
  void* dw = nullptr;       // partial sums [part][o][kh][kw] in float or double; null where not asked for
  void* db = nullptr;       // partial sums [part][o]
  int64_t chunk = 1;        // channels in a task
  bool prefetches = false;  // whether the arrays may not lie in the third-level cache
  bool claims = false;      // whether the result may not lie in the second-level cache
  bool streams = false;     // whether the result is more than a third-level cache keeps for its reader
  int64_t strips = 1;       // pieces that the rows of an image are cut into
  int64_t parts = 1;        // partial sums of the weight gradient, each over some strips

  bool by_rows() const { return layout == Layout::kRows || layout == Layout::kPixels; }
  int64_t units() const { return g.n * strips; }

  // A chunk is a multiple of the widest vector; what remains joins the last one, which so is never narrower than that.
  int64_t chunks() const { return g.c < kWidest ? 1 : (g.c - kWidest) / chunk + 1; }
  Range channels(int64_t i) const { return {i * chunk, i + 1 < chunks() ? (i + 1) * chunk : g.c}; }
};

// A kernel is called with a range of tasks. Tasks write disjoint memory and are the same whatever the number of
// threads, so that neither their order nor that number changes a bit of the result.
struct Kernels {
  void (*forward)(const Problem&, int64_t begin, int64_t end);   // tasks: chunks * units, in any order
  void (*backward)(const Problem&, int64_t begin, int64_t end);  // tasks: chunks * parts, chunk by chunk
};

}  // namespace fastnets::depthwise
