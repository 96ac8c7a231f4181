// Arguments and results that nms and soft_nms share on CPU and GPU.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "tensor.h"

namespace fastnets {

inline void check_boxes(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& ids) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "expected boxes (n, 4)");
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == boxes.size(0) && scores.scalar_type() == boxes.scalar_type(),
                  "expected scores (n) of the type of boxes");
  STD_TORCH_CHECK(!ids || (ids->dim() == 1 && ids->size(0) == boxes.size(0) && ids->scalar_type() == ScalarType::Long),
                  "expected idxs (n) of type int64");
  check_memory(boxes), check_memory(scores);  // what a thread throws loses its words
  if (ids) check_memory(*ids);
}

inline Tensor empty_int64(const Tensor& like, const std::vector<int64_t>& sizes) {
  return empty_strided(like, sizes, std::vector<int64_t>(sizes.size(), 1), aoti_torch_dtype_int64());
}

// The largest number of type A up to `threshold`: torchvision compares an IoU in float with a threshold in double, and
// no float lies between the two.
template <typename A>
A round_down(double threshold) {
  const A nearest = static_cast<A>(threshold);
  return nearest > threshold ? std::nextafter(nearest, -std::numeric_limits<A>::infinity()) : nearest;
}

}  // namespace fastnets
