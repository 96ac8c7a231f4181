// Soft-NMS on CUDA: launch and registration. The kernels are in the .cuh; sorting into categories is done before.
#include <tuple>

#include "soft_nms.cuh"

namespace fastnets {
namespace {

// Boxes (n, 4), scores and index (n) of float or double, which it may change; categories begin as in boxes.cuh. Writes
// what is taken of a category to keep and decayed, from its beginning on: the numbers that index had there, which are
// those from 0 on, and scores.
void soft_nms_categories(const Tensor& boxes, const Tensor& scores, const Tensor& index,
                         const std::optional<Tensor>& begins, const Tensor& keep, const Tensor& decayed,
                         double iou_threshold, double sigma, double min_score, const Text& method, int64_t most,
                         const std::optional<Text>& compat) {
  const int64_t n = scores.size(0);
  if (n == 0) return;
  const Stream stream(boxes);
  const Grid grid = grid_of(n, begins.has_value());
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const auto p = soft_nms_arguments<A>(iou_threshold, sigma, min_score, method, most);
    const Rows<A> rows{mutable_data<Box<A>>(boxes), mutable_data<A>(scores), mutable_data<int64_t>(index)};
    const Categories categories{begins ? data<int64_t>(*begins) : nullptr, n};
    const auto start = [&](auto kernel, const auto&... arguments) {
      launch(stream, grid, kernel, arguments..., categories, mutable_data<int64_t>(keep), mutable_data<A>(decayed), p);
    };
    const Rules rules = parse_rules(compat);
    if (rules == Rules::kMmcv) return start(soft_nms_by_swaps<A, Rules::kMmcv>, rows);
    if (rules == Rules::kPaper) return start(soft_nms_by_swaps<A, Rules::kPaper>, rows);
    start(soft_nms<A>, rows.boxes, rows.scores);
  };
  boxes.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("soft_nms_categories", TORCH_BOX(&fastnets::soft_nms_categories));
}
