// Arguments and results that nms and soft_nms share on CPU and GPU.
#pragma once

#include <optional>

#include "tensor.h"

namespace fastnets {

inline void check_boxes(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& ids) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, "expected boxes (n, 4)");
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == boxes.size(0) && scores.scalar_type() == boxes.scalar_type(),
                  "expected scores (n) of the type of boxes");
  STD_TORCH_CHECK(!ids || (ids->dim() == 1 && ids->size(0) == boxes.size(0) && ids->scalar_type() == ScalarType::Long),
                  "expected idxs (n) of type int64");
}

inline Tensor empty_int64(const Tensor& like, const std::vector<int64_t>& sizes) {
  return empty_strided(like, sizes, std::vector<int64_t>(sizes.size(), 1), aoti_torch_dtype_int64());
}

}  // namespace fastnets
