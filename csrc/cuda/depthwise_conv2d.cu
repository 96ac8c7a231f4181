// Depthwise convolution on CUDA: a grouped one, whose groups have one input channel each.
#include "grouped_conv2d.h"
#include "launch.h"

namespace fastnets {
namespace {

using std::vector;

Tensor depthwise_conv2d(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                        const vector<int64_t>& stride, const vector<int64_t>& padding, const vector<int64_t>& dilation,
                        const std::optional<Text>& activation) {
  const Convolution g = depthwise_geometry(x, w, stride, padding, dilation);
  return grouped_conv2d(x, w, bias, stride, padding, dilation, g.groups, activation);
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward(const Tensor& dy, const Tensor& x, const Tensor& w,
                                                             const vector<int64_t>& stride,
                                                             const vector<int64_t>& padding,
                                                             const vector<int64_t>& dilation, bool need_dx,
                                                             bool need_dw, bool need_db) {
  const Convolution g = depthwise_geometry(x, w, stride, padding, dilation);
  return grouped_conv2d_backward(dy, x, w, stride, padding, dilation, g.groups, need_dx, need_dw, need_db);
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&fastnets::depthwise_conv2d));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&fastnets::depthwise_conv2d_backward));
}
