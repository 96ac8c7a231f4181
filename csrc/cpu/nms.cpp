// NMS on a CPU: order of the boxes, categories, threads, registration. The kernels are in the header.
#include "rounding.h"
//
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>

#include "../boxes.h"
#include "nms.h"
#include "nms_order.h"

#define FASTNETS_KERNELS "nms_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

// Where a box lies: its size and place, in 9 and 256 x 256 steps of what all cover, those of one size along a curve
// that goes through each quarter before the next. NaN and infinity come out somewhere.
template <typename A>
class Whereabouts {
 public:
  Whereabouts(const NmsBoxes<A>& boxes, int64_t n) : boxes_(boxes) {
    A x = -x_, y = -y_;
    for (int64_t i = 0; i < n; ++i) {
      if (boxes.x1[i] < x_) x_ = boxes.x1[i];
      if (boxes.y1[i] < y_) y_ = boxes.y1[i];
      if (boxes.x1[i] > x) x = boxes.x1[i];
      if (boxes.y1[i] > y) y = boxes.y1[i];
    }
    step_ = std::max(x - x_, y - y_) / 256;
  }

  uint64_t key(int64_t i) const {
    const A size = std::max(boxes_.x2[i] - boxes_.x1[i], boxes_.y2[i] - boxes_.y1[i]);
    uint64_t level = 0;
    for (A least = step_; level < 8 && least < size; least *= 2) ++level;
    return level << 16 | spread(boxes_.x1[i] - x_) | spread(boxes_.y1[i] - y_) << 1;
  }

 private:
  // The bits of the step that a place is in, with gaps between them.
  uint64_t spread(A place) const {
    const A steps = place / step_;
    uint64_t bits = steps > 0 ? steps < 255 ? static_cast<uint64_t>(steps) : 255 : 0;
    bits = (bits | bits << 4) & 0x0f0f;
    bits = (bits | bits << 2) & 0x3333;
    return (bits | bits << 1) & 0x5555;
  }

  const NmsBoxes<A>& boxes_;
  A x_ = std::numeric_limits<A>::infinity(), y_ = x_, step_;
};

// The boxes of one category, best first.
template <typename T>
void gather(const Tensor& boxes, const int64_t* members, int64_t n, const NmsBoxes<Sum<T>>& to) {
  const T* box = data<T>(boxes);
  const int64_t row = boxes.stride(0), column = boxes.stride(1);
  Sum<T>* const sides[] = {to.x1, to.y1, to.x2, to.y2};
  for (int64_t i = 0; i < n; ++i) {
    for (int side = 0; side < 4; ++side) sides[side][i] = static_cast<Sum<T>>(box[members[i] * row + side * column]);
    to.area[i] = (to.x2[i] - to.x1[i]) * (to.y2[i] - to.y1[i]);
  }
}

// The chunk of each box: neighbours share one.
template <typename A>
std::vector<int32_t> chunks_of(const NmsBoxes<A>& boxes, int64_t n) {
  std::vector<int64_t> order = all_indices(n);
  const Whereabouts<A> whereabouts(boxes, n);
  sort_by_key(order, [&](int64_t rank) { return whereabouts.key(rank); });
  std::vector<int32_t> chunks(n);
  for (int64_t i = 0; i < n; ++i) chunks[order[i]] = static_cast<int32_t>(i / NmsCategory<A>::kChunk);
  return chunks;
}

// Which of one category's members, given best first, are kept. Blocks of boxes are tested against the kept ones by all
// threads, then among themselves.
template <typename T>
int64_t ranks_of_category(const Tensor& boxes, const int64_t* members, int64_t n, Sum<T> threshold, int64_t* ranks) {
  using A = Sum<T>;
  using Boxes = NmsBoxes<A>;
  constexpr int64_t kFew = 1024, kBlock = 512;
  constexpr A kNaN = std::numeric_limits<A>::quiet_NaN(), kFar = std::numeric_limits<A>::infinity();
  const int64_t size = n <= kFew ? kFew : kBlock;
  const int64_t in_chunks = n <= size ? 0 : n;  // after a single block nothing looks for kept boxes
  const int64_t chunks = ceil_div(in_chunks, NmsCategory<A>::kChunk), room = chunks + Boxes::kRoom;
  const auto memory = std::make_unique_for_overwrite<A[]>(Boxes::count(n) + Boxes::count(size));
  const Boxes all(memory.get(), n), recent(memory.get() + Boxes::count(n), size);
  gather<T>(boxes, members, n, all);
  const std::vector<int32_t> chunk_of = chunks_of(all, in_chunks);
  std::vector<A> kept(Boxes::count(in_chunks), kNaN), bounds(Boxes::count(chunks), -kFar);
  const Boxes covered(bounds.data(), chunks);
  std::fill_n(covered.x1, room, kFar), std::fill_n(covered.y1, room, kFar);
  std::vector<int32_t> counts(room);
  const NmsCategory<A> c{n,       chunks,        all,      chunk_of.data(), Boxes(kept.data(), in_chunks),
                         covered, counts.data(), threshold};
  const auto suppressed = std::make_unique_for_overwrite<bool[]>(n);
  const NmsKernels<A> kernels = FASTNETS_FOR_THIS_CPU(nms_kernels<A>)();
  int64_t count = 0;
  for (int64_t block = 0; block < n; block += size) {
    const int64_t end = std::min(block + size, n);
    torch::stable::parallel_for(block, end, 1 + (1 << 16) / (count + 1),
                                [&](int64_t first, int64_t last) { kernels.test(c, first, last, suppressed.get()); });
    count += kernels.keep(c, block, end, suppressed.get(), recent, ranks + count);
  }
  return count;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& ids, double iou_threshold) {
  check_boxes(boxes, scores, ids);
  return with_float(boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = boxes.size(0), step = scores.stride(0);
    const T* score = data<T>(scores);
    std::vector<int64_t> best_first = all_indices(n);
    sort_by_key(best_first, [&](int64_t i) { return descending_key(static_cast<Sum<T>>(score[i * step])); });
    const Categories c = categories(best_first, ids);

    const auto kept = std::make_unique<bool[]>(n);  // by original index
    torch::stable::parallel_for(0, c.count(), 1 + 256 * c.count() / (n + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t* members = c.members.data() + c.begins[i];
        const auto ranks = std::make_unique_for_overwrite<int64_t[]>(c.size(i));
        const auto threshold = round_down<Sum<T>>(iou_threshold);
        const int64_t count = ranks_of_category<T>(boxes, members, c.size(i), threshold, ranks.get());
        for (int64_t j = 0; j < count; ++j) kept[members[ranks[j]]] = true;
      }
    });
    const Tensor keep = empty_int64(boxes, {std::count(kept.get(), kept.get() + n, true)});
    std::copy_if(best_first.begin(), best_first.end(), mutable_data<int64_t>(keep), [&](int64_t i) { return kept[i]; });
    return keep;
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("nms", TORCH_BOX(&fastnets::nms)); }
