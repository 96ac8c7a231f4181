// Depthwise convolution on a CPU: arguments, the cut into tasks, registration. The kernels are in the headers.
#include "depthwise_conv2d.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <type_traits>

#define FASTNETS_KERNELS "depthwise_conv2d_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

using depthwise::Kernels;
using depthwise::Operand;
using depthwise::Problem;

constexpr int64_t kParts = 32;  // partial sums of the weight gradient at most: enough for as many threads

Operand operand(const Tensor& t) { return {t.data_ptr(), strides_of(t)}; }

// Cuts the work into tasks: strips of rows that fit the second-level cache, and more of them where images are few. Strips,
// over which the weight gradient's sums run, depend on shapes only. Only where rows cannot keep the threads busy are
// channels cut as well: threads that write neighbouring channels fetch each other's cache lines.
void cut(Problem& p, int64_t bytes, const Tensor& written) {
  const Convolution& g = p.g;
  constexpr int64_t kStrip = 192 << 10, kUnits = 16, kSecondLevel = 2 << 20, kThirdLevel = 16 << 20;
  const int64_t image = bytes * (g.c * g.h * g.w + g.o * g.oh * g.ow), images = std::max<int64_t>(1, g.n);
  p.prefetches = images * image > kSecondLevel;
  p.streams = bytes * written.numel() > kThirdLevel;
  p.strips = std::clamp<int64_t>(std::max(image / kStrip, kUnits / images), 1, g.oh);
  const int64_t units = images * p.strips, wanted = 2 * torch::stable::get_num_threads();
  const int64_t chunks = units < wanted ? (wanted + units - 1) / units : 1;
  p.chunk = (g.c / chunks / depthwise::kWidest + 1) * depthwise::kWidest;
}

void run(void (*kernel)(const Problem&, int64_t, int64_t), const Problem& p, int64_t tasks) {
  const Convolution& g = p.g;
  const int64_t work = std::max<int64_t>(1, g.n * g.o * g.oh * g.ow * g.kh * g.kw / tasks);  // multiply-adds in a task
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, (1 << 15) / work),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, const std::optional<std::string>& activation) {
  Problem p;
  p.g = depthwise_geometry(x, w, stride, padding, dilation);
  const Convolution& g = p.g;
  p.activation = parse_activation(activation);
  const bool last = is_channels_last(x);
  const Tensor y = empty(x, {g.n, g.o, g.oh, g.ow}, last);
  if (y.numel() == 0) return y;
  p.x = operand(x), p.w = operand(w), p.y = operand(y);
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == g.o && bias->scalar_type() == x.scalar_type(),
                    "expected a bias of ", g.o, " numbers of the input's type");
    p.bias = bias->data_ptr(), p.bias_step = bias->stride(0);
  }
  const bool lanes_are_channels = last && p.x.stride.c == 1;
  cut(p, x.element_size(), y);
  const Kernels kernels = FASTNETS_FOR_THIS_CPU(depthwise_kernels)(x.scalar_type(), lanes_are_channels, g.c);
  run(kernels.forward, p, p.chunks() * p.units());
  return y;
}

// Adds up partial sums [part][count] in their order.
template <typename A, typename T>
void add_up(const A* partial, int64_t parts, const Tensor& out) {
  T* to = static_cast<T*>(out.data_ptr());
  const int64_t count = out.numel();
  for (int64_t i = 0; i < count; ++i) {
    A total = 0;
    for (int64_t part = 0; part < parts; ++part) total += partial[part * count + i];
    to[i] = static_cast<T>(total);
  }
}

template <typename T>
void backward_of(Problem& p, const Kernels& kernels, const Tensor& dw, const Tensor& db) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const std::unique_ptr<A[]> weights(new A[p.parts * dw.numel()]), biases(new A[p.parts * db.numel()]);
  p.dw = dw.numel() ? weights.get() : nullptr;
  p.db = db.numel() ? biases.get() : nullptr;
  run(kernels.backward, p, p.chunks() * p.parts);
  add_up<A, T>(weights.get(), p.parts, dw);
  add_up<A, T>(biases.get(), p.parts, db);
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward(const Tensor& dy, const Tensor& x, const Tensor& w,
                                                             const std::vector<int64_t>& stride,
                                                             const std::vector<int64_t>& padding,
                                                             const std::vector<int64_t>& dilation, bool need_dx,
                                                             bool need_dw, bool need_db) {
  Problem p;
  p.g = depthwise_geometry(x, w, stride, padding, dilation);
  const Convolution& g = p.g;
  STD_TORCH_CHECK(dy.dim() == 4 && dy.size(0) == g.n && dy.size(1) == g.o && dy.size(2) == g.oh &&
                      dy.size(3) == g.ow && dy.scalar_type() == x.scalar_type(),
                  "expected a gradient of the result's shape and type");
  const bool last = is_channels_last(x);
  const Tensor dx = need_dx ? empty(x, {g.n, g.c, g.h, g.w}, last) : empty(x, 0);
  const Tensor dw = need_dw ? empty(w, {g.o, 1, g.kh, g.kw}, is_channels_last(w)) : empty(w, 0);
  const Tensor db = empty(w, need_db ? g.o : 0);
  p.x = operand(x), p.w = operand(w), p.y = operand(dy);
  if (dx.numel() > 0) p.dx = operand(dx);
  const bool lanes_are_channels = last && p.x.stride.c == 1 && p.y.stride.c == 1;
  cut(p, x.element_size(), dx);
  p.parts = std::clamp<int64_t>(p.units(), 1, need_dw || need_db ? kParts : p.units() + 1);
  const Kernels kernels = FASTNETS_FOR_THIS_CPU(depthwise_kernels)(x.scalar_type(), lanes_are_channels, g.c);
  switch (x.scalar_type()) {
    case ScalarType::Double:
      backward_of<double>(p, kernels, dw, db);
      break;
    case ScalarType::BFloat16:
      backward_of<torch::headeronly::BFloat16>(p, kernels, dw, db);
      break;
    case ScalarType::Half:
      backward_of<torch::headeronly::Half>(p, kernels, dw, db);
      break;
    default:
      backward_of<float>(p, kernels, dw, db);
  }
  return {dx, dw, db};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_FRAGMENT(fastnets_cpu, m) {
  m.def(
      "depthwise_conv2d(Tensor x, Tensor w, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
      "str? activation) -> Tensor");
  m.def(
      "depthwise_conv2d_backward(Tensor dy, Tensor x, Tensor w, int[2] stride, int[2] padding, int[2] dilation, "
      "bool need_dx, bool need_dw, bool need_db) -> (Tensor dx, Tensor dw, Tensor db)");
}

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&fastnets::depthwise_conv2d));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&fastnets::depthwise_conv2d_backward));
}
