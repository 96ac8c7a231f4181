// NMS of one category with the instructions of one processor. Included three times by isa.h.
//
// A box is compared with the bounds of L chunks of kept boxes at once, then with L at once of those in the chunks that
// it meets, until one suppresses it: 20 bytes (of float) for a chunk, and for a box; some 30 instructions for L chunks,
// 20 for L boxes. All of it stays in the caches. IoU > t is decided by a division, but that is rare: if the rounded
// quotient a / b is above t, the exact one is, so a > t * b, and rounding keeps a >= round(t * b).
#include "box_overlap.h"
#include "nms.h"

namespace fastnets::FASTNETS_ISA {

// Whether one of the L boxes from `i` on suppresses `box`; NaN does not.
template <typename A, int L>
FASTNETS_INLINE bool suppresses(const NmsBoxes<A>& kept, int64_t i, const Box<A, L>& box, A threshold) {
  Vec<A, L> both, either;
  overlap<A, L>(load_box<A, L>(kept, i), box, both, either);
  if (threshold >= 0 && !any(both >= threshold * either)) return false;
  return any(both / either > threshold);
}

template <typename A>
FASTNETS_INLINE bool any_suppresses(const NmsBoxes<A>& kept, int64_t begin, int64_t end, const Box<A, kLanes<A>>& box,
                                    A threshold) {
  for (int64_t i = begin; i < end; i += kLanes<A>)
    if (suppresses<A, kLanes<A>>(kept, i, box, threshold)) return true;
  return false;
}

// Chunks with a box whose IoU with this one can be above a threshold t of 0 or more: every side of theirs begins before
// this one's ends and ends after it begins; and as an IoU is at most the ratio of the areas, one is larger than t times
// this one, which is left a margin that no rounding takes.
template <typename A>
FASTNETS_INLINE unsigned near(const NmsBoxes<A>& bounds, int64_t chunk, const Box<A, kLanes<A>>& box, A threshold) {
  constexpr int L = kLanes<A>;
  const auto columns = (load<A, L>(bounds.x1 + chunk) < box.x2) & (box.x1 < load<A, L>(bounds.x2 + chunk));
  const auto rows = (load<A, L>(bounds.y1 + chunk) < box.y2) & (box.y1 < load<A, L>(bounds.y2 + chunk));
  const auto small = load<A, L>(bounds.area + chunk) < box.area * (threshold * A(0.999));
  return lane_bits(columns & rows & ~small);
}

template <typename A>
void test(const NmsCategory<A>& c, int64_t begin, int64_t end, bool* suppressed) {
  constexpr int L = kLanes<A>;
  for (int64_t rank = begin; rank < end; ++rank) {
    const Box<A, L> box = splat_box<A, L>(c.boxes, rank);
    bool is = false;
    for (int64_t chunk = 0; chunk < c.chunks && !is; chunk += L)
      for (unsigned met = c.threshold < 0 ? (1u << L) - 1 : near(c.bounds, chunk, box, c.threshold); met && !is;
           met &= met - 1) {
        const int64_t at = chunk + __builtin_ctz(met), first = at * c.kChunk;
        is = any_suppresses(c.kept, first, first + c.counts[at], box, c.threshold);
      }
    suppressed[rank] = is;
  }
}

template <typename A>
FASTNETS_INLINE void copy(const NmsBoxes<A>& from, int64_t i, const NmsBoxes<A>& to, int64_t j) {
  to.x1[j] = from.x1[i], to.y1[j] = from.y1[i], to.x2[j] = from.x2[i], to.y2[j] = from.y2[i], to.area[j] = from.area[i];
}

template <typename A>
void put_into_chunk(const NmsCategory<A>& c, int64_t rank) {
  const NmsBoxes<A>&box = c.boxes, &bounds = c.bounds;
  const int64_t i = c.chunk_of[rank];
  copy(box, rank, c.kept, i * c.kChunk + c.counts[i]++);
  if (box.x1[rank] < bounds.x1[i]) bounds.x1[i] = box.x1[rank];
  if (box.y1[rank] < bounds.y1[i]) bounds.y1[i] = box.y1[rank];
  if (box.x2[rank] > bounds.x2[i]) bounds.x2[i] = box.x2[rank];
  if (box.y2[rank] > bounds.y2[i]) bounds.y2[i] = box.y2[rank];
  if (box.area[rank] > bounds.area[i]) bounds.area[i] = box.area[rank];
}

template <typename A>
int64_t keep(const NmsCategory<A>& c, int64_t begin, int64_t end, const bool* suppressed, const NmsBoxes<A>& recent,
             int64_t* ranks) {
  constexpr A kNaN = std::numeric_limits<A>::quiet_NaN();
  for (A* array : {recent.x1, recent.y1, recent.x2, recent.y2, recent.area})
    std::fill(array, array + end - begin + recent.kRoom, kNaN);
  int64_t count = 0;
  for (int64_t rank = begin; rank < end; ++rank) {
    if (suppressed[rank] || any_suppresses(recent, 0, count, splat_box<A, kLanes<A>>(c.boxes, rank), c.threshold))
      continue;
    copy(c.boxes, rank, recent, count);
    ranks[count++] = rank;
  }
  for (int64_t i = 0; i < count && end < c.n; ++i) put_into_chunk(c, ranks[i]);
  return count;
}

template <typename A>
inline NmsKernels<A> nms_kernels() {
  return {test<A>, keep<A>};
}

}  // namespace fastnets::FASTNETS_ISA
