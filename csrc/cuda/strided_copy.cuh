// Strided copies on CUDA.
//
// Work. Elements are numbered in the order of the result's memory: a block takes kThreads * kEach of the three
// innermost axes, at one place of the others, and a thread every kThreads-th of these. So stores are contiguous; what a
// warp reads lies in a few runs, whose cache lines the same block, or one beside it, uses whole.
//
// Bytes. Each element is read once and written once, up to 16 bytes at a time where neighbours stay neighbours.
#pragma once

#include <type_traits>

#include "../strided_copy.h"
#include "launch.h"

namespace fastnets {

constexpr int kCopyThreads = 256, kEach = 4;

struct Loops {
  Axis outer[3], inner[3];
  int64_t count, blocks;  // of the inner axes: elements, and blocks for them
};

struct alignas(16) Bytes16 {
  uint64_t low, high;
};

struct Same {
  template <typename E>
  __device__ E operator()(E x) const {
    return x;
  }
};

// Takes the last coordinate off a flat index; Index is 32 bits wide where that is enough, for the sake of division.
template <typename Index>
__device__ int64_t take_last(Index& index, int64_t size) {
  const Index whole = index;
  index = whole / static_cast<Index>(size);
  return static_cast<int64_t>(whole - index * static_cast<Index>(size));
}

template <typename E, typename R, typename Index, typename F>
__global__ void __launch_bounds__(kCopyThreads) strided_copy(const char* from, char* to, Loops loops, F convert) {
  Index place = static_cast<Index>(blockIdx.x / loops.blocks);
  for (int axis = 2; axis >= 0; --axis) {
    const int64_t i = take_last(place, loops.outer[axis].size);
    from += i * loops.outer[axis].from;
    to += i * loops.outer[axis].to;
  }
  const int64_t first = blockIdx.x % loops.blocks * (kCopyThreads * kEach) + threadIdx.x;
  for (int each = 0; each < kEach; ++each) {
    const int64_t number = first + each * kCopyThreads;
    if (number >= loops.count) return;
    Index k = static_cast<Index>(number);
    int64_t source = 0, result = 0;
    for (int axis = 2; axis >= 0; --axis) {
      const int64_t i = take_last(k, loops.inner[axis].size);
      source += i * loops.inner[axis].from;
      result += i * loops.inner[axis].to;
    }
    *reinterpret_cast<R*>(to + result) = convert(*reinterpret_cast<const E*>(from + source));
  }
}

// From elements of type E to R, by `convert`; the axes of `copy` are simplified.
template <typename E, typename R, typename F>
void launch_copy(const Stream& stream, const StridedCopy& copy, const F& convert) {
  std::vector<Axis> axes = copy.axes;
  axes.insert(axes.begin(), 6 - axes.size(), Axis{1, 0, 0});
  Loops loops;
  std::copy_n(axes.begin(), 3, loops.outer);
  std::copy_n(axes.begin() + 3, 3, loops.inner);
  constexpr int64_t kBlock = kCopyThreads * kEach;
  loops.count = axes[3].size * axes[4].size * axes[5].size;
  loops.blocks = (loops.count + kBlock - 1) / kBlock;
  const int64_t blocks = copy.elements() / loops.count * loops.blocks;
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "the copy needs ", blocks, " blocks, of at most 2^31 - 1");
  const bool narrow = loops.count < int64_t{1} << 31;
  const auto kernel = narrow ? strided_copy<E, R, uint32_t, F> : strided_copy<E, R, uint64_t, F>;
  launch(stream, {static_cast<unsigned>(blocks), kCopyThreads}, kernel, copy.from, copy.to, loops, convert);
}

inline void run(const Stream& stream, StridedCopy copy) {
  copy = simplified(copy);
  switch (copy.bytes) {
    case 1:
      return launch_copy<uint8_t, uint8_t>(stream, copy, Same());
    case 2:
      return launch_copy<uint16_t, uint16_t>(stream, copy, Same());
    case 4:
      return launch_copy<uint32_t, uint32_t>(stream, copy, Same());
    case 8:
      return launch_copy<uint64_t, uint64_t>(stream, copy, Same());
    default:
      return launch_copy<Bytes16, Bytes16>(stream, copy, Same());
  }
}

}  // namespace fastnets
