// The grouped convolution on CUDA, of which the depthwise one is a case.
#pragma once

#include <tuple>

#include "../convolution.h"

namespace fastnets {

Tensor grouped_conv2d(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, int64_t groups, const std::optional<Text>& activation);

std::tuple<Tensor, Tensor, Tensor> grouped_conv2d_backward(const Tensor& dy, const Tensor& x, const Tensor& w,
                                                           const std::vector<int64_t>& stride,
                                                           const std::vector<int64_t>& padding,
                                                           const std::vector<int64_t>& dilation, int64_t groups,
                                                           bool need_dx, bool need_dw, bool need_db);

}  // namespace fastnets
