// A copy between two strided arrays: all that an op is which only moves data. Shared by CPU and CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tensor.h"

namespace fastnets {

// One loop of a copy; strides in bytes.
struct Axis {
  int64_t size, from, to;
};

struct StridedCopy {
  const char* from;
  char* to;
  int64_t bytes;  // of an element: 1, 2, 4, 8 or 16
  std::vector<Axis> axes;

  int64_t elements() const {
    int64_t n = 1;
    for (const Axis& axis : axes) n *= axis.size;
    return n;
  }
};

// The copy that undoes it.
inline StridedCopy inverted(const StridedCopy& copy) {
  StridedCopy back{copy.to, const_cast<char*>(copy.from), copy.bytes, copy.axes};
  for (Axis& axis : back.axes) std::swap(axis.from, axis.to);
  return back;
}

// Whether neighbours can be moved in twos as one element: those along the innermost axis, contiguous in both arrays.
inline bool can_widen(const StridedCopy& copy) {
  const std::vector<Axis>& axes = copy.axes;
  if (copy.bytes >= 16 || axes.empty()) return false;
  const Axis& run = axes.back();
  if (run.from != copy.bytes || run.to != copy.bytes || run.size % 2 != 0) return false;
  uintptr_t places = reinterpret_cast<uintptr_t>(copy.from) | reinterpret_cast<uintptr_t>(copy.to);
  for (size_t i = 0; i + 1 < axes.size(); ++i) places |= axes[i].from | axes[i].to;
  return places % (2 * copy.bytes) == 0;
}

// The same copy with as few axes as possible, in the order of the result's memory, and elements as wide as possible.
inline StridedCopy simplified(StridedCopy copy) {
  std::vector<Axis> sorted = copy.axes, &axes = copy.axes;
  for (Axis& axis : sorted) {
    if (axis.to >= 0) continue;  // two results, the second below the first
    copy.from += (axis.size - 1) * axis.from;
    copy.to += (axis.size - 1) * axis.to;
    axis = {axis.size, -axis.from, -axis.to};
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const Axis& a, const Axis& b) { return a.to > b.to; });
  axes.clear();
  for (const Axis& axis : sorted) {
    if (axis.size == 1) continue;
    const bool joins =
        !axes.empty() && axes.back().from == axis.size * axis.from && axes.back().to == axis.size * axis.to;
    if (joins)
      axes.back() = {axes.back().size * axis.size, axis.from, axis.to};
    else
      axes.push_back(axis);
  }
  while (can_widen(copy)) {
    copy.bytes *= 2;
    axes.back() = {axes.back().size / 2, copy.bytes, copy.bytes};
    if (axes.back().size == 1) axes.pop_back();
  }
  return copy;
}

}  // namespace fastnets
