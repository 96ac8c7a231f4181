// What the kernels of precision_gate_conv2d are given, for all instruction sets.
#pragma once

#include <span>

#include "../precision_gate_conv2d.h"
#include "work.h"

namespace fastnets::gate {

constexpr int64_t kWindow = 64;     // bytes of a pixel that an Excess picks from
constexpr int64_t kLanes = 16;      // output channels of a panel: 32-bit integers in the widest vector
constexpr int64_t kMostPanels = 4;  // that one tile has

// Weights have up to 9 bits with their sign, a byte of the dot product 8. What passes a byte is kept apart: for each
// output channel of a panel four (channel, weight) pairs, the channel counted from `channel` of tap `tap`.
// fastnets/ops/_packed_precision_gate_conv2d.py makes and reads them too.
struct Excess {
  int64_t tap, channel;
  uint8_t index[4 * kLanes];
  int8_t weight[4 * kLanes];
};
static_assert(sizeof(Excess) == 16 + 8 * kLanes);

struct Problem {
  Convolution g;
  Bits bits;
  const void *x, *threshold, *bias;  // bias: null for none
  void* y;
  Four x_stride, y_stride;
  int64_t threshold_step, bias_step;
  double x_scale = 0, w_scale = 0;

  // Images go by in groups, whose parts stay in the caches until they are read: the one that is under way.
  int64_t first_image = 0, images = 0;

  // The group's parts, one byte a number, as [n][padded h][padded w][groups][channels, up to a multiple of 4]; what is
  // stored is the number + zero(part), so that it is never negative.
  uint8_t* parts[2];
  int64_t channels, pixel, row, image;  // channels of a group; bytes

  // Output channels in panels: each group has `panels` of them. Weights as [panel][tap][channels / 4][lane][4].
  int64_t panels;
  const int8_t* weights;
  const int32_t* sums;                          // of a channel's weights
  std::vector<std::span<const Excess>> excess;  // [panel]
  std::vector<int64_t> tap_offset;              // bytes
  int64_t chunk = 1;                            // output pixels in a task
  bool streams = false;                         // whether y is more than a third-level cache keeps for its reader
  bool fetches = false;                         // whether a tile asks for the lines of y before it has them to write

  int32_t zero(int part) const { return 1 << (part == 0 ? bits.high : bits.low); }
  int64_t panel_bytes() const { return g.kh * g.kw * channels * kLanes; }
  int64_t blocks() const { return (panels + kMostPanels - 1) / kMostPanels; }
  int64_t pixels() const { return images * g.oh * g.ow; }
  int64_t chunks() const { return (pixels() + chunk - 1) / chunk; }
};

// Numbers of any strides, and what the Problem reads of them.
struct Weights {
  const void* from;
  Four stride;
  int8_t* bytes;
  int32_t* sums;
  std::vector<std::vector<Excess>> excess;
};

// Tasks write disjoint memory. Sums are of integers: the same bits however they are cut.
struct Kernels {
  // max|v| of `count` numbers that lie `step` apart; NaN if there is one.
  double (*largest)(const void* from, int64_t count, int64_t step);
  void (*quantize)(const Problem&, int64_t begin, int64_t end);        // tasks: rows of the padded input
  void (*pack)(const Problem&, Weights&, int64_t begin, int64_t end);  // tasks: panels of all groups
  int64_t (*convolve)(const Problem&, int64_t begin, int64_t end);     // tasks: chunks * groups * blocks; open gates
};

}  // namespace fastnets::gate
