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

// The boxes of one category, of ranks [begin, end), best first.
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

// Takes one category, best first. Blocks of boxes are tested against the kept ones by all threads, then among
// themselves.
template <typename T>
int64_t keep_of_category(const Tensor& boxes, const int64_t* members, int64_t n, Sum<T> threshold, int64_t* positions) {
  using A = Sum<T>;
  constexpr int64_t kBlock = 512;
  const auto memory = std::make_unique_for_overwrite<A[]>(2 * NmsBoxes<A>::count(n));
  const NmsBoxes<A> all(memory.get(), n), kept(memory.get() + NmsBoxes<A>::count(n), n);
  const auto suppressed = std::make_unique_for_overwrite<bool[]>(n);
  gather<T>(boxes, members, n, all);
  const NmsKernels<A> kernels = FASTNETS_FOR_THIS_CPU(nms_kernels<A>)();
  int64_t count = 0;
  for (int64_t block = 0; block < n; block += kBlock) {
    const int64_t end = std::min(block + kBlock, n);
    torch::stable::parallel_for(block, end, 1 + (1 << 16) / (count + 1), [&](int64_t first, int64_t last) {
      kernels.test(kept, count, all, first, last, threshold, suppressed.get());
    });
    count = kernels.keep(kept, count, all, block, end, threshold, suppressed.get(), positions);
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
        const int64_t* members = &c.members[c.begins[i]];
        const auto positions = std::make_unique_for_overwrite<int64_t[]>(c.size(i));
        const auto threshold = round_down<Sum<T>>(iou_threshold);
        const int64_t count = keep_of_category<T>(boxes, members, c.size(i), threshold, positions.get());
        for (int64_t j = 0; j < count; ++j) kept[members[positions[j]]] = true;
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
