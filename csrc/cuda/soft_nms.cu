// Soft-NMS on CUDA: launch and registration. The kernels are in the .cuh; sorting into categories is done before.
#include <tuple>

#include "soft_nms.cuh"

namespace fastnets {
namespace {

// Boxes (4, n), scores and index (n) of float or double, which it changes. A category that begins at i ends at ends[i],
// and where none begins ends[i] is i. Writes index and score of what is taken of a category to keep and decayed, from
// the category's beginning on.
void soft_nms_categories(const Tensor& boxes, const Tensor& scores, const Tensor& index,
                         const std::optional<Tensor>& ends, const Tensor& keep, const Tensor& decayed,
                         double iou_threshold, double sigma, double min_score, const std::string& method, int64_t most,
                         const std::optional<std::string>& compat) {
  const int64_t n = scores.size(0);
  if (n == 0) return;
  const Stream stream(boxes);
  const Grid grid = grid_of(n, ends.has_value());
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const auto p = soft_nms_arguments<A>(iou_threshold, sigma, min_score, method, most);
    const Planes<A> planes{mutable_data<A>(boxes), n};
    const Rows<A> rows{planes, mutable_data<A>(scores), mutable_data<int64_t>(index)};
    const int64_t* end = ends ? data<int64_t>(*ends) : nullptr;
    int64_t* k = mutable_data<int64_t>(keep);
    A* d = mutable_data<A>(decayed);
    const Rules rules = parse_rules(compat);
    if (rules == Rules::kMmcv) return launch(stream, grid, soft_nms_by_swaps<A, Rules::kMmcv>, rows, end, k, d, p);
    if (rules == Rules::kPaper) return launch(stream, grid, soft_nms_by_swaps<A, Rules::kPaper>, rows, end, k, d, p);
    const int64_t* original = rows.index;
    launch(stream, grid, soft_nms<A>, planes, rows.scores, original, end, k, d, p);
  };
  boxes.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("soft_nms_categories", TORCH_BOX(&fastnets::soft_nms_categories));
}
