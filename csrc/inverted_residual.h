// What the CPU and the CUDA side of inverted_residual share: geometry and checks.
#pragma once

#include <algorithm>

#include "convolution.h"
#include "packed.h"

namespace fastnets::inverted {

using packed::MaybeTensor;

// How many channels' weights of pointwise convolutions lie together for each result; the type of what is added up:
// biases and the weights of the depthwise convolution; how many of the last hidden channels `project` may leave out,
// which only fill a vector: an infinite x makes NaN of their zeros; the type of weights where it is not that of x.
struct Packing {
  int64_t together;
  ScalarType sums;
  int64_t spare = 0;
  std::optional<ScalarType> weights = {};
};

// The hidden channels that `project` takes.
inline int64_t taken_by(const Tensor& project, int64_t out) {
  return project.numel() / std::max<int64_t>(1, ceil_div(out, packed::kPanel) * packed::kPanel);
}

// The depthwise convolution of all hidden channels; `padding`: above, left, below and right of the image.
inline Convolution check(const Tensor& x, const MaybeTensor& expand, const MaybeTensor& expand_bias,
                         const Tensor& depthwise, int64_t hidden, const std::vector<int64_t>& kernel,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, const Tensor& project, const MaybeTensor& project_bias,
                         int64_t out, const MaybeTensor& residual, const Packing& packing) {
  const ScalarType type = x.scalar_type(), type_of_weights = packing.weights.value_or(type);
  packed::check_images(x, type);
  for (const MaybeTensor& t :
       {expand, expand_bias, MaybeTensor(depthwise), MaybeTensor(project), project_bias, residual})
    STD_TORCH_CHECK(!t || t->device() == x.device(), "expected all tensors on the input's device");
  const Four s = sizes_of(x);
  STD_TORCH_CHECK(hidden > 0 && hidden % 16 == 0 && (expand || hidden == s.c),
                  "expected a number of hidden channels that 16 divides, that of x where nothing expands it");
  STD_TORCH_CHECK(kernel.size() == 2, "expected pairs");
  const Convolution g =
      geometry({s.n, hidden, s.h, s.w}, {hidden, 1, kernel[0], kernel[1]}, stride, padding, dilation, hidden, 2);
  STD_TORCH_CHECK(depthwise.is_contiguous() && depthwise.scalar_type() == packing.sums &&
                      depthwise.numel() == (g.kh * g.kw + 1) * hidden,
                  "expected the weights and biases of ", hidden, " depthwise kernels, of the type of sums");
  if (expand) {
    packed::check_panels(*expand, s.c, hidden, type_of_weights, packing.together);
    packed::check_bias(expand_bias, hidden, packing.sums);
  }
  const int64_t taken = std::clamp(taken_by(project, out), hidden - packing.spare, hidden);
  packed::check_panels(project, taken, out, type_of_weights, packing.together);
  packed::check_bias(project_bias, out, packing.sums);

  return g;
}

}  // namespace fastnets::inverted
