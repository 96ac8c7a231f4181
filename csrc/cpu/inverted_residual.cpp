// The inverted residual on a CPU: arguments, the cut into tasks, registration. The kernels are in the header.
#include "inverted_residual.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "depthwise_conv2d.h"

#define FASTNETS_KERNELS "inverted_residual_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

using inverted::kPanel;
using inverted::Problem;

// Into so many strips that the scratch of each fits the second-level cache; returns whether each is a task, which reads
// all weights and expands some rows that another does too. Each result is one sum, whatever the cut.
template <typename T>
bool cut(Problem<T>& p) {
  constexpr int64_t kScratch = 640 << 10, kFew = 768 << 10, kMany = 1 << 20;  // the last two: of weights
  const Convolution& g = p.g;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t bytes = sizeof(T) * (g.h * g.w * (p.expand.in + kPanel) + g.oh * g.ow * g.c);
  const int64_t weights = sizeof(T) * g.c * (p.expand.in + p.project.out);
  const int64_t strips = std::clamp<int64_t>(ceil_div(bytes, kScratch), 1, g.oh);
  const bool once = !p.expand.w || g.n * strips >= 2 * threads || threads == 1;  // little is expanded twice
  const bool alone = weights <= kFew || (weights <= kMany && once);
  if (!alone)
    p.strips = std::clamp<int64_t>(2 * threads / (g.n * p.hidden_panels()), 1, g.oh);
  else
    p.strips = g.n >= threads ? strips : std::min(g.oh, ceil_div(strips, threads) * threads);
  return alone;
}

template <typename T>
void run(Problem<T>& p, const Tensor& x) {
  const Convolution& g = p.g;
  const int64_t pixels = g.n * g.oh * g.ow;
  const int64_t first = g.n * g.h * g.w * (p.expand.w ? p.expand.in * g.c : 0) + pixels * g.kh * g.kw * g.c;
  if (cut(p))
    return pointwise::run(p.units(), first + pixels * g.c * p.project.out,
                          [p, kernel = FASTNETS_FOR_THIS_CPU_AND(T, inverted::units)](int64_t begin, int64_t end) {
                            kernel(p, begin, end);
                          });
  const StepScratch hidden(x, pixels * p.hidden_pixel());
  const pointwise::Pixels<T> to = p.hidden(hidden.data<T>(), pixels);
  p.project.x = {to.data, to.pixel, to.panel};
  pointwise::run(p.units() * p.hidden_panels(), first,
                 [p, to, kernel = FASTNETS_FOR_THIS_CPU_AND(T, inverted::hidden_panels)](int64_t begin, int64_t end) {
                   kernel(p, to, begin, end);
                 });
  pointwise::run(p.project, pixels, FASTNETS_FOR_THIS_CPU_AND(T, pointwise::multiply_tasks));
}

// Of x in channels_last: project(depthwise(expand(x))) + residual, each with bias and activation. Weights are in panels
// as inverted_residual.h says; hidden channels, of which `hidden` is a multiple of 16, may end in zeros, which
// `project` need not take; `into` and `channel` are as in pointwise_conv2d.
Tensor inverted_residual(const Tensor& x, const std::optional<Tensor>& expand, const std::optional<Tensor>& expand_bias,
                         const std::optional<Text>& expand_activation, const Tensor& depthwise, int64_t hidden,
                         const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                         const std::optional<Text>& activation, const Tensor& project,
                         const std::optional<Tensor>& project_bias, int64_t out, const std::optional<Tensor>& residual,
                         const std::optional<Text>& project_activation, const std::optional<Tensor>& into,
                         int64_t channel) {
  using namespace pointwise;
  return with_type(x, [&](auto type) {
    using T = decltype(type);
    Problem<T> p;
    p.g = inverted::check(x, expand, expand_bias, depthwise, hidden, kernel, stride, padding, dilation, project,
                          project_bias, out, residual, {kTogether<T>, ScalarType::Float, 15});
    const Four size{p.g.n, out, p.g.oh, p.g.ow};
    const Results<T> y(x, size, into, channel);
    p.expand.x = {data<T>(x), x.size(1)}, p.expand.in = x.size(1), p.expand.out = hidden;
    if (expand) {
      p.expand.w = data<T>(*expand), p.expand.bias = expand_bias ? data<float>(*expand_bias) : nullptr;
      p.expand.activation = parse_activation(expand_activation);
    }
    p.depthwise = data<float>(depthwise), p.activation = parse_activation(activation);
    p.project.w = data<T>(project), p.project.bias = project_bias ? data<float>(*project_bias) : nullptr;
    p.project.in = inverted::taken_by(project, out), p.project.out = out,
    p.project.activation = parse_activation(project_activation);
    p.project.y = y.pixels, p.project.residual = check_residual<T>(residual, size);
    p.project.streams = streams(size);
    if (size.n * size.c * size.h * size.w > 0) run(p, x);
    return y.images;
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("inverted_residual", TORCH_BOX(&fastnets::inverted_residual));
}
