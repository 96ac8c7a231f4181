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
#define FASTNETS_VNNI
#include "isa_avx512.h"

namespace fastnets {
namespace {

using inverted::kPanel;
using inverted::Problem;
using pointwise::kIsBytes;

// About how many rows of a panel the thread that has most to do expands, given `each` panels of a strip to a task. Rows
// that two strips need are expanded twice, those beside the image not at all.
template <typename X, typename Y>
double work(const Problem<X, Y>& p, int64_t strips, int64_t each, int64_t threads) {
  const Convolution& g = p.g;
  const int64_t span = (g.kh - 1) * g.dh + 1, beside = std::max(g.ph, (g.oh - 1) * g.sh + span - g.h);
  const int64_t rows = p.expand.w ? std::min(strips * g.h, (g.oh - strips) * g.sh + strips * span - beside) : g.oh;
  const int64_t tasks = ceil_div(g.n * strips * p.hidden_panels() / each, threads);
  return static_cast<double>(tasks * each * rows) / static_cast<double>(strips);
}

// The strips, `least` or more of them, with which that is least where a task is one panel.
template <typename X, typename Y>
int64_t strips_of_panels(const Problem<X, Y>& p, int64_t least, int64_t threads) {
  int64_t best = least;
  for (int64_t strips = least + 1; strips <= std::min(p.g.oh, 2 * threads); ++strips)
    if (work(p, strips, 1, threads) < work(p, best, 1, threads)) best = strips;
  return best;
}

// Into so many strips that the scratch of each fits the second-level cache; returns whether each is a task, which reads
// all weights, and with squeeze and excitation whether an image is. Each result is one sum, whatever the cut.
template <typename X, typename Y>
bool cut(Problem<X, Y>& p) {
  constexpr int64_t kScratch = 640 << 10, kFew = 768 << 10, kMany = 1 << 20;  // the last two: of weights
  const Convolution& g = p.g;
  const int64_t threads = torch::stable::get_num_threads(), panels = p.hidden_panels();
  const int64_t numbers = sizeof(pointwise::Number<X>) * g.h * g.w * kPanel;  // expanded, of a panel
  const int64_t bytes = numbers + sizeof(X) * (g.h * g.w * p.expand.in + g.oh * g.ow * g.c);
  const int64_t weights = sizeof(X) * g.c * (p.expand.in + p.project.out + 2 * p.gate.squeeze.out);
  const int64_t of_panel = std::clamp<int64_t>(numbers / kScratch, 1, g.oh);
  const int64_t shared = strips_of_panels(p, of_panel, threads);
  int64_t alone = std::clamp<int64_t>(ceil_div(bytes, kScratch), 1, g.oh);
  const bool once = !p.expand.w || g.n * alone >= 2 * threads || threads == 1;  // little is expanded twice
  if (g.n < threads) alone = std::min(g.oh, ceil_div(alone, threads) * threads);
  constexpr double kWorth = 1.2;  // what is gained where strips stay in a thread's caches and threads wait less often
  bool is_alone = weights <= kFew || (weights <= kMany && once);
  if (p.gate.is_there()) {
    is_alone = is_alone && work(p, 1, panels, threads) <= kWorth * work(p, 1, 1, threads);
    p.strips = is_alone ? of_panel : shared;
  } else {
    is_alone = is_alone && work(p, alone, panels, threads) <= kWorth * work(p, shared, 1, threads);
    p.strips = is_alone ? alone : shared;
  }
  return is_alone;
}

// Scales hidden channels, of whose rows there are sums.
template <typename T>
void excite(Problem<T> p, const Tensor& x, const float* sums, const pointwise::Pixels<T>& hidden) {
  const int64_t n = p.g.n, c = p.g.c, few = p.gate.squeeze.out;
  const StepScratch means(x, n * c), squeezed(x, n * few);
  p.gate.squeeze.x = {means.data<T>(), c}, p.gate.squeeze.y = {squeezed.data<T>(), few};
  pointwise::run(n * p.hidden_panels(), n * p.row_sums(),
                 [p, sums, to = means.data<T>(), kernel = FASTNETS_FOR_THIS_CPU_AND(T, inverted::means<T>)](
                     int64_t begin, int64_t end) { kernel(p, sums, to, begin, end); });
  pointwise::run(p.gate.squeeze, n, FASTNETS_FOR_THIS_CPU_AND(T, pointwise::multiply_tasks<T, T>));
  pointwise::run(
      n * p.gate.excite.panels(), n * c * (few + p.g.oh * p.g.ow),
      [p, hidden, from = squeezed.data<T>(), kernel = FASTNETS_FOR_THIS_CPU_AND(T, inverted::excite_panels<T>)](
          int64_t begin, int64_t end) { kernel(p, from, hidden, begin, end); });
}

template <typename X, typename Y>
void run(Problem<X, Y>& p, const Tensor& x) {
  const Convolution& g = p.g;
  const int64_t pixels = g.n * g.oh * g.ow;
  const int64_t first = g.n * g.h * g.w * (p.expand.w ? p.expand.in * g.c : 0) + pixels * g.kh * g.kw * g.c;
  const bool are_bytes = x.scalar_type() == ScalarType::Byte;
  const bool is_alone = cut(p);
  std::optional<pointwise::BytesOf> bytes;
  if constexpr (kIsBytes<X>)
    if (are_bytes || (p.expand.w && !is_alone))
      p.expand.x = bytes.emplace(x, p.levels, pointwise::Quantize{FASTNETS_FOR_THIS_CPU(quantize_pixels)}).found;
  if (is_alone) {
    auto all = FASTNETS_FOR_THIS_CPU_AND_BYTES(X, inverted::units<X, Y>);
    if constexpr (!kIsBytes<X>)
      if (p.gate.is_there()) all = FASTNETS_FOR_THIS_CPU_AND(X, inverted::images<X>);
    return pointwise::run(p.gate.is_there() ? g.n : p.units(), first + pixels * g.c * p.project.out,
                          [p, all](int64_t begin, int64_t end) { all(p, begin, end); });
  }
  const StepScratch hidden(x, pixels * p.hidden_pixel(), pointwise::dtype_for<X>());
  std::optional<StepScratch> held;
  if (p.gate.is_there()) held.emplace(x, g.n * p.row_sums(), aoti_torch_dtype_float32());
  float* const sums = held ? held->data<float>() : nullptr;
  const pointwise::Pixels<X> to = p.hidden(hidden.data<X>(), pixels);
  p.project.x = {to.data, to.pixel, to.panel};
  pointwise::run(p.units() * p.hidden_panels(), first,
                 [p, to, sums, kernel = FASTNETS_FOR_THIS_CPU_AND_BYTES(X, inverted::hidden_panels<X, Y>)](
                     int64_t begin, int64_t end) { kernel(p, to, sums, begin, end); });
  if constexpr (!kIsBytes<X>)
    if (sums) excite(p, x, sums, to);
  pointwise::run(p.project, pixels, FASTNETS_FOR_THIS_CPU_AND_BYTES(X, pointwise::multiply_tasks<X, Y>));
}

// Its arguments, as those of the op below.
template <typename X, typename Y>
Tensor convolve(const Tensor& x, const std::optional<Tensor>& expand, const std::optional<Tensor>& expand_bias,
                const std::optional<Text>& expand_activation, const Tensor& depthwise, int64_t hidden,
                const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                const std::optional<Text>& activation, const Tensor& project, const std::optional<Tensor>& project_bias,
                int64_t out, const std::optional<Tensor>& residual, const std::optional<Text>& project_activation,
                const std::vector<Tensor>& squeeze, const std::optional<Text>& squeeze_activation, bool hard,
                const std::vector<Tensor>& quantized, const std::optional<Tensor>& levels,
                const std::optional<Tensor>& into, int64_t channel) {
  using namespace pointwise;
  Problem<X, Y> p;
  p.g = inverted::check(x, expand, expand_bias, depthwise, hidden, kernel, stride, padding, dilation, project,
                        project_bias, out, residual, {kTogether<X>, ScalarType::Float, 15, kType<Weight<X>>});
  const Four size{p.g.n, out, p.g.oh, p.g.ow};
  const Results<Y> y(x, size, into, channel);
  p.in = x.size(1), p.expand.in = kIsBytes<X> ? bytes_of(p.in) : p.in, p.expand.out = hidden;
  p.expand.x.pixel = p.expand.in;
  if (x.scalar_type() != ScalarType::Byte) p.x = {data<Number<X>>(x), p.in};
  if constexpr (!kIsBytes<X>) p.expand.x = p.x;
  if (expand) {
    p.expand.w = data<Weight<X>>(*expand), p.expand.bias = expand_bias ? data<float>(*expand_bias) : nullptr;
    p.expand.activation = parse_activation(expand_activation);
  }
  p.depthwise = data<float>(depthwise), p.activation = parse_activation(activation);
  p.project.w = data<Weight<X>>(project), p.project.bias = project_bias ? data<float>(*project_bias) : nullptr;
  p.project.in = inverted::taken_by(project, out), p.project.out = out,
  p.project.activation = parse_activation(project_activation);
  p.project.y = y.pixels, p.project.residual = check_residual<Y>(residual, size);
  p.project.streams = streams(size);
  if constexpr (kIsBytes<X>) {
    STD_TORCH_CHECK(squeeze.empty(), "expected no squeeze and excitation in int8");
    const Quantized last = check_quantized(quantized, 0, out);
    p.project.scales = last.scales, p.hidden_levels = last.levels, p.project.levels = StoredLevels(levels);
    if (expand || !p.x.data) {
      const Quantized first = check_quantized(quantized, 1, expand ? hidden : 0);
      p.expand.scales = first.scales, p.levels = first.levels;
    }
  } else {
    p.gate = squeeze::check_gate<X>(squeeze, squeeze_activation, hard, p.project.in);
  }
  if (size.n * size.c * size.h * size.w > 0) run(p, x);
  return y.images;
}

// Of x in channels_last: project(depthwise(expand(x))) + residual, each with bias and activation. Weights are in panels
// as inverted_residual.h says; hidden channels, of which `hidden` is a multiple of 16, may end in zeros, which
// `project` need not take; `into` and `channel` are as in pointwise_conv2d; `squeeze` are those of check_gate; in int8,
// `quantized` are those of check_quantized for `project` and `expand`, which without scales are the levels of x for the
// depthwise convolution; `levels` are as in pointwise_conv2d.
Tensor inverted_residual(const Tensor& x, const std::optional<Tensor>& expand, const std::optional<Tensor>& expand_bias,
                         const std::optional<Text>& expand_activation, const Tensor& depthwise, int64_t hidden,
                         const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                         const std::optional<Text>& activation, const Tensor& project,
                         const std::optional<Tensor>& project_bias, int64_t out, const std::optional<Tensor>& residual,
                         const std::optional<Text>& project_activation, const std::vector<Tensor>& squeeze,
                         const std::optional<Text>& squeeze_activation, bool hard, const std::vector<Tensor>& quantized,
                         const std::optional<Tensor>& levels, const std::optional<Tensor>& into, int64_t channel) {
  return pointwise::with_types(x, quantized, levels, project_activation, [&](auto multiplied, auto stored) {
    return convolve<decltype(multiplied), decltype(stored)>(
        x, expand, expand_bias, expand_activation, depthwise, hidden, kernel, stride, padding, dilation, activation,
        project, project_bias, out, residual, project_activation, squeeze, squeeze_activation, hard, quantized, levels,
        into, channel);
  });
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("inverted_residual", TORCH_BOX(&fastnets::inverted_residual));
}
