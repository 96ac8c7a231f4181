// NMS with the instructions of one processor. Included three times by isa.h.
//
// A box is tested against L of the boxes kept before it at once, until one suppresses it: 20 bytes (of float) and about
// 16 instructions for each. Kept boxes stay in the caches. IoU > t is decided by a division, but that is rare: if the
// rounded quotient a / b is above t, the exact one is, so a > t * b, and rounding keeps a >= round(t * b).
#include "box_overlap.h"
#include "nms.h"

namespace fastnets::FASTNETS_ISA {

// Whether one of the L boxes from `i` on suppresses `box`.
template <typename A, int L>
FASTNETS_INLINE bool suppresses(const NmsBoxes<A>& kept, int64_t i, const Box<A, L>& box, A threshold) {
  const Box<A, L> better{load<A, L>(kept.x1 + i), load<A, L>(kept.y1 + i), load<A, L>(kept.x2 + i),
                         load<A, L>(kept.y2 + i), load<A, L>(kept.area + i)};
  Vec<A, L> both, either;
  overlap<A, L>(better, box, both, either);
  if (threshold >= 0 && !any(both >= threshold * either)) return false;
  return any(both / either > threshold);
}

template <typename A>
FASTNETS_INLINE bool any_suppresses(const NmsBoxes<A>& kept, int64_t begin, int64_t end, const NmsBoxes<A>& boxes,
                                    int64_t at, A threshold) {
  constexpr int L = kLanes<A>;
  const Box<A, L> box{splat<A, L>(boxes.x1[at]), splat<A, L>(boxes.y1[at]), splat<A, L>(boxes.x2[at]),
                      splat<A, L>(boxes.y2[at]), splat<A, L>(boxes.area[at])};
  for (int64_t i = begin; i < end; i += L)
    if (suppresses<A, L>(kept, i, box, threshold)) return true;
  return false;
}

template <typename A>
void test(const NmsBoxes<A>& kept, int64_t kept_end, const NmsBoxes<A>& boxes, int64_t begin, int64_t end, A threshold,
          bool* suppressed) {
  for (int64_t i = begin; i < end; ++i) suppressed[i] = any_suppresses(kept, 0, kept_end, boxes, i, threshold);
}

// Behind the last of them, kept boxes are NaN, which suppresses nothing.
template <typename A>
void put_nan(const NmsBoxes<A>& kept, int64_t begin, int64_t end) {
  for (A* array : {kept.x1, kept.y1, kept.x2, kept.y2, kept.area})
    for (int64_t i = begin; i < end; ++i) array[i] = std::numeric_limits<A>::quiet_NaN();
}

template <typename A>
int64_t keep(const NmsBoxes<A>& kept, int64_t count, const NmsBoxes<A>& boxes, int64_t begin, int64_t end, A threshold,
             const bool* suppressed, int64_t* positions) {
  const int64_t first = count / kLanes<A> * kLanes<A>;  // those before were tested with all of this block
  if (count == 0) put_nan(kept, 0, kept.kRoom);
  for (int64_t i = begin; i < end; ++i) {
    if (suppressed[i] || any_suppresses(kept, first, count, boxes, i, threshold)) continue;
    kept.x1[count] = boxes.x1[i], kept.y1[count] = boxes.y1[i], kept.x2[count] = boxes.x2[i];
    kept.y2[count] = boxes.y2[i], kept.area[count] = boxes.area[i];
    put_nan(kept, count + kept.kRoom, count + kept.kRoom + 1);
    positions[count++] = i;
  }
  return count;
}

template <typename A>
inline NmsKernels<A> nms_kernels() {
  return {test<A>, keep<A>};
}

}  // namespace fastnets::FASTNETS_ISA
