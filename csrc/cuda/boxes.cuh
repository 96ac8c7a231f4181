// Boxes as nms and soft_nms have them on CUDA: those of a category behind each other.
#pragma once

#include "../boxes.h"
#include "launch.h"

namespace fastnets {

constexpr unsigned kMostThreads = 512;  // up to 128 registers in a thread: double needs more than 64

// What a thread loads at once, but for double.
template <typename A>
struct alignas(16) Box {
  A x1, y1, x2, y2;
};

// Category k lies from begins[k] to begins[k + 1], and begins[k] is n from the number of categories on. Without
// `begins`, all boxes are one category.
struct Categories {
  const int64_t* begins;
  int64_t n;

  __device__ int64_t operator[](int64_t k) const { return begins ? begins[k < n ? k : n] : k == 0 ? 0 : n; }
};

template <typename A>
__device__ A area(const Box<A>& b) {
  return mul_rn(sub_rn(b.x2, b.x1), sub_rn(b.y2, b.y1));
}

// Intersection and union: the operations of csrc/cpu/box_overlap.h, in the same order. Where a number of `a` is NaN,
// only `either` is as there: NaN.
template <typename A>
__device__ void overlap(const Box<A>& a, const Box<A>& b, A& both, A& either) {
  const A w = sub_rn(fmin(a.x2, b.x2), fmax(a.x1, b.x1)), h = sub_rn(fmin(a.y2, b.y2), fmax(a.y1, b.y1));
  both = mul_rn(fmax(A(0), w), fmax(A(0), h));
  either = sub_rn(add_rn(area(a), area(b)), both);
}

// Blocks that go through the categories in turn; one, if there is one. Of n boxes, not of their categories, whose
// number the host does not know.
inline Grid grid_of(int64_t n, bool batched) {
  const unsigned threads = batched || n <= 512 ? 128 : kMostThreads;
  return {batched ? static_cast<unsigned>(n < 2048 ? n : 2048) : 1, threads};
}

}  // namespace fastnets
