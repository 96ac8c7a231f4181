// Overlap of one box with L others, on the vectors of vector.h, as nms and soft_nms share it. Included once for each
// instruction set (isa.h): no guard. Needs rounding.h.

namespace fastnets::FASTNETS_ISA {

// The larger and the smaller of two as std::max(a, b) and std::min(a, b) choose: a, if either is NaN.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> larger(Vec<A, L> a, Vec<A, L> b) {
  return a < b ? b : a;
}
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> smaller(Vec<A, L> a, Vec<A, L> b) {
  return b < a ? b : a;
}

template <typename A, int L>
struct Box {
  Vec<A, L> x1, y1, x2, y2, area;
};

// The L boxes from `i` on, and one L times, of arrays with the names of a box's properties.
template <typename A, int L, typename Boxes>
FASTNETS_INLINE Box<A, L> load_box(const Boxes& boxes, int64_t i) {
  return {load<A, L>(boxes.x1 + i), load<A, L>(boxes.y1 + i), load<A, L>(boxes.x2 + i), load<A, L>(boxes.y2 + i),
          load<A, L>(boxes.area + i)};
}
template <typename A, int L, typename Boxes>
FASTNETS_INLINE Box<A, L> splat_box(const Boxes& boxes, int64_t i) {
  return {splat<A, L>(boxes.x1[i]), splat<A, L>(boxes.y1[i]), splat<A, L>(boxes.x2[i]), splat<A, L>(boxes.y2[i]),
          splat<A, L>(boxes.area[i])};
}

// Intersection and union: each operation is rounded on its own, in this order, on every backend.
template <typename A, int L>
FASTNETS_INLINE void overlap(const Box<A, L>& a, const Box<A, L>& b, Vec<A, L>& both, Vec<A, L>& either) {
  const Vec<A, L> zero{};
  const Vec<A, L> w = smaller<A, L>(a.x2, b.x2) - larger<A, L>(a.x1, b.x1);
  const Vec<A, L> h = smaller<A, L>(a.y2, b.y2) - larger<A, L>(a.y1, b.y1);
  both = larger<A, L>(zero, w) * larger<A, L>(zero, h);
  either = (a.area + b.area) - both;
}

}  // namespace fastnets::FASTNETS_ISA
