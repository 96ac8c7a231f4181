// What the kernels of grouped_conv2d are given, for all layouts and instruction sets.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../convolution.h"
#include "pointwise_conv2d.h"
#include "work.h"

namespace fastnets::grouped {

struct Tap {
  int64_t offset, index;
};
inline bool by_offset(const Tap& a, const Tap& b) { return a.offset < b.offset; }

// Rows or columns of a correlation. Result place step * q + residue is the sum, over the taps of that residue, of
// source place source_step * q + offset times kernel place index.
struct Axis {
  int64_t size = 1, source = 1;  // places of result and source
  int64_t step = 1, source_step = 1;
  std::vector<std::vector<Tap>> taps{{{0, 0}}};  // by residue, of those that have places
  int64_t first = 0, last = 0;                   // least and greatest offset

  int64_t count(int64_t residue = 0) const { return (size - residue + step - 1) / step; }
  // Source places that `q` neighbouring results reach over.
  int64_t span(int64_t q) const { return (q - 1) * source_step + last - first + 1; }
  bool holds(int64_t place) const { return place >= 0 && place < source; }

  void set_reach() {
    first = INT64_MAX, last = INT64_MIN;
    for (const auto& some : taps)
      for (const Tap& tap : some) first = std::min(first, tap.offset), last = std::max(last, tap.offset);
    if (first > last) first = last = 0;
  }
};

// y[i] = sum over j of x[s i + d j - p] w[j].
inline Axis forward_axis(int64_t size, int64_t source, int64_t k, int64_t s, int64_t p, int64_t d) {
  Axis axis{size, source, 1, s, {{}}};
  for (int64_t j = 0; j < k; ++j) axis.taps[0].push_back({d * j - p, j});
  axis.set_reach();
  return axis;
}

// dx[i] = sum over j of dy[(i + p - d j) / s] w[j], for the j where s divides.
inline Axis backward_axis(int64_t size, int64_t source, int64_t k, int64_t s, int64_t p, int64_t d) {
  Axis axis{size, source, s, 1, std::vector<std::vector<Tap>>(std::min(s, size))};
  for (int64_t a = 0; a < std::min(s, size); ++a)
    for (int64_t j = 0; j < k; ++j)
      if ((a + p - d * j) % s == 0) axis.taps[a].push_back({(a + p - d * j) / s, j});
  axis.set_reach();
  return axis;
}

// A correlation within groups: from x to y, or with the roles of both exchanged from dy to dx.
struct Problem {
  int64_t n, groups, in, out;  // in, out: channels of a group in source and result; of the source, or pairs of them
  int64_t kh, kw;
  Axis rows, columns;
  Operand source, result;
  const void* w = nullptr;
  Four w_stride{};             // of w's dimensions: n is that of the group's result channels, c of its source channels
  int64_t w_group = 0;         // stride from group to group
  const void* bias = nullptr;  // by result channel, bias_step apart
  int64_t bias_step = 1;
  Activation activation = Activation::kNone;
  bool weighs = true;  // whether the weight's gradient is asked for, not only the bias's

  // Work is dealt by units: as many groups as fill a vector of result channels, or one group that fills some.
  int64_t together = 1;  // groups in a unit
  int64_t chunk = 1;     // units in a task
  int64_t strips = 1;    // pieces that the rows of an image are cut into
  int64_t parts = 1;     // partial sums of the weight gradient, each over some strips

  int64_t taps() const { return kh * kw; }
  int64_t pairs() const { return weighs ? in * taps() : 0; }  // of a source channel and a tap
  int64_t units() const { return ceil_div(groups, together); }
  int64_t unit_in() const { return together * in; }
  int64_t unit_out() const { return together * out; }
  int64_t chunks() const { return ceil_div(units(), chunk); }
  Range units_of(int64_t i) const { return {i * chunk, std::min((i + 1) * chunk, units())}; }
  Range rows_of(int64_t strip) const { return share(rows.count(), strip, strips); }
  int64_t most_rows() const { return ceil_div(rows.count(), strips); }
};

// A kernel is called with a range of tasks. Tasks write disjoint memory, and each number is summed in one order, so
// that neither the order of the tasks nor the number of threads changes a bit of the result.
struct Kernels {
  int64_t lanes;
  bool permutes;                                                        // whether a unit may have several groups
  void (*correlate)(const Problem&, int64_t begin, int64_t end);        // tasks: chunks * n * strips, chunk by chunk
  void (*correlate_pairs)(const Problem&, int64_t begin, int64_t end);  // of source channels; null where there is none
  // The same for 1x1 kernels on pixels that lie side by side, given the product of the first group, without weights and
  // perhaps without its last results, and tasks for the panels of all groups, one more each for such results; null
  // where the type has no such kernel.
  void (*multiply)(const Problem&, const pointwise::Problem& first, const pointwise::Tasks&, int64_t begin,
                   int64_t end);
  // Tasks: chunks * parts. Writes partial sums [part][unit][vector][pairs + 1][lanes], the last row for the bias.
  void (*weight_gradient)(const Problem&, void* partial, int64_t begin, int64_t end);
};

}  // namespace fastnets::grouped
