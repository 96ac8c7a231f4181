// Boxes as nms and soft_nms have them on CUDA: four planes of n numbers, the boxes of a category behind each other.
#pragma once

#include "../boxes.h"
#include "launch.h"

namespace fastnets {

constexpr unsigned kMostThreads = 512;  // up to 128 registers in a thread: double needs more than 64

template <typename A>
struct Box {
  A x1, y1, x2, y2;
};

template <typename A>
struct Planes {
  A* p;
  int64_t n;

  __device__ Box<A> at(int64_t i) const { return {p[i], p[n + i], p[2 * n + i], p[3 * n + i]}; }
  __device__ void put(int64_t i, const Box<A>& b) const {
    p[i] = b.x1, p[n + i] = b.y1, p[2 * n + i] = b.x2, p[3 * n + i] = b.y2;
  }
};

// Where the category that begins at position i ends: at i, if none does. Without `ends`, all boxes are one category.
__device__ inline int64_t category_end(const int64_t* ends, int64_t i, int64_t n) { return ends ? ends[i] : n; }

// As std::max(a, b) and std::min(a, b): a, if either is NaN.
template <typename A>
__device__ A larger(A a, A b) {
  return a < b ? b : a;
}
template <typename A>
__device__ A smaller(A a, A b) {
  return b < a ? b : a;
}

// `pixel` is 1 where widths count the last pixel.
template <typename A>
__device__ A area(const Box<A>& b, A pixel = 0) {
  return mul_rn(add_rn(sub_rn(b.x2, b.x1), pixel), add_rn(sub_rn(b.y2, b.y1), pixel));
}

// Intersection and union: the operations of csrc/cpu/box_overlap.h, in the same order.
template <typename A>
__device__ void overlap(const Box<A>& a, const Box<A>& b, A& both, A& either) {
  const A w = sub_rn(smaller(a.x2, b.x2), larger(a.x1, b.x1)), h = sub_rn(smaller(a.y2, b.y2), larger(a.y1, b.y1));
  both = mul_rn(larger(A(0), w), larger(A(0), h));
  either = sub_rn(add_rn(area(a), area(b)), both);
}

// A block for each position of a batch, most of which end at once, or one block.
inline Grid grid_of(int64_t n, bool batched) {
  const unsigned threads = batched || n <= 512 ? 128 : kMostThreads;
  return {batched ? static_cast<unsigned>(n) : 1, threads};
}

}  // namespace fastnets
