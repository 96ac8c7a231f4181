// Soft-NMS on a CPU: categories, threads, the order of the results, registration. The kernels are in the header.
#include "rounding.h"
//
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "../boxes.h"
#include "nms_order.h"
#include "soft_nms.h"

#define FASTNETS_KERNELS "soft_nms_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

template <typename T>
void gather(const Tensor& boxes, const Tensor& scores, const int64_t* members, int64_t n, const BoxArrays<Sum<T>>& to) {
  const T *box = data<T>(boxes), *score = data<T>(scores);
  const int64_t row = boxes.stride(0), column = boxes.stride(1), step = scores.stride(0);
  Sum<T>* const sides[] = {to.x1, to.y1, to.x2, to.y2};
  for (int64_t i = 0; i < n; ++i) {
    for (int side = 0; side < 4; ++side) sides[side][i] = static_cast<Sum<T>>(box[members[i] * row + side * column]);
    to.score[i] = static_cast<Sum<T>>(score[members[i] * step]);
    to.index[i] = members[i];
  }
}

// What was taken of each category, in the place of its members.
template <typename A>
struct Taken {
  std::unique_ptr<int64_t[]> keep;
  std::unique_ptr<A[]> decayed;
  std::vector<int64_t> counts;
};

template <typename T>
Taken<Sum<T>> take_each(const Tensor& boxes, const Tensor& scores, const Categories& c, const SoftNms<Sum<T>>& p,
                        SoftNmsKernel<Sum<T>> kernel) {
  using A = Sum<T>;
  const int64_t n = c.members.size();
  Taken<A> taken{std::make_unique_for_overwrite<int64_t[]>(n), std::make_unique_for_overwrite<A[]>(n),
                 std::vector<int64_t>(c.count())};
  torch::stable::parallel_for(0, c.count(), 1 + 256 * c.count() / (n + 1), [&](int64_t begin, int64_t end) {
    int64_t most = 0;
    for (int64_t i = begin; i < end; ++i) most = std::max(most, c.size(i));
    const auto memory = std::make_unique_for_overwrite<std::byte[]>(BoxArrays<A>::bytes(most));
    const BoxArrays<A> arrays(memory.get(), most);
    for (int64_t i = begin; i < end; ++i) {
      gather<T>(boxes, scores, c.members.data() + c.begins[i], c.size(i), arrays);
      taken.counts[i] = kernel(arrays, c.size(i), p, &taken.keep[c.begins[i]], &taken.decayed[c.begins[i]]);
    }
  });
  return taken;
}

// The slots of all that was taken: as taken, or by score, equal ones by index.
template <typename A>
std::vector<int64_t> order_of(const Taken<A>& taken, const Categories& c, bool by_score) {
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < c.count(); ++i)
    for (int64_t j = 0; j < taken.counts[i]; ++j) slots.push_back(c.begins[i] + j);
  if (by_score) {
    sort_by_key(slots, [&](int64_t s) { return static_cast<uint64_t>(taken.keep[s]); });
    sort_by_key(slots, [&](int64_t s) { return descending_key(taken.decayed[s]); });
  }
  return slots;
}

std::tuple<Tensor, Tensor, Tensor> soft_nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& ids,
                                            double iou_threshold, double sigma, double min_score, const Text& method,
                                            std::optional<int64_t> max_output, const std::optional<Text>& compat) {
  check_boxes(boxes, scores, ids);
  STD_TORCH_CHECK(!max_output || *max_output >= 0, "expected max_output of 0 or more");
  return with_float(boxes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Sum<T>;
    const Categories c = categories(all_indices(boxes.size(0)), ids);
    const int64_t n = boxes.size(0), most = std::min(max_output.value_or(n), n);
    const bool rises = ids && (compat || min_score < 0);  // see _most in fastnets/ops/soft_nms.py
    const auto p = soft_nms_arguments<A>(iou_threshold, sigma, min_score, method, rises ? n : most);
    const auto kernels = FASTNETS_FOR_THIS_CPU(soft_nms_kernels<A>)();
    const Taken<A> taken = take_each<T>(boxes, scores, c, p, kernels.by(parse_rules(compat)));
    const std::vector<int64_t> slots = order_of(taken, c, ids.has_value());

    const int64_t count = std::min<int64_t>(slots.size(), most), size = max_output.value_or(count);
    const Tensor keep = empty_int64(boxes, {size}), decayed = empty(boxes, size), total = empty_int64(boxes, {});
    auto* const k = mutable_data<int64_t>(keep);
    auto* const d = mutable_data<T>(decayed);
    for (int64_t i = 0; i < count; ++i) k[i] = taken.keep[slots[i]], d[i] = static_cast<T>(taken.decayed[slots[i]]);
    std::fill(k + count, k + size, -1);
    std::fill(d + count, d + size, static_cast<T>(0));
    *mutable_data<int64_t>(total) = count;
    return std::tuple(keep, decayed, total);
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("soft_nms", TORCH_BOX(&fastnets::soft_nms)); }
