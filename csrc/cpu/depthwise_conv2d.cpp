// Depthwise convolution on a CPU: arguments, the cut into tasks, registration. The kernels are in the headers.
#include "depthwise_conv2d.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>
#include <type_traits>

#include "batch_moments.h"
#include "steps.h"
#define FASTNETS_KERNELS "depthwise_conv2d_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

using depthwise::Kernels;
using depthwise::Layout;
using depthwise::Norm;
using depthwise::Problem;

// Cuts the channels into `pieces` of whole vectors, or fewer.
void cut_channels(Problem& p, int64_t pieces) {
  p.chunk = ceil_div(p.g.c, std::max<int64_t>(1, pieces) * depthwise::kWidest) * depthwise::kWidest;
}

// The kernels for tensors x, or dx, and y, or dy, of numbers of that type, if those of "rows" go up to that stride.
// These are not compiled for float64.
Layout layout_of(const Problem& p, bool channels_last, ScalarType type, int64_t stride) {
  const Convolution& g = p.g;
  const depthwise::Lanes lanes = FASTNETS_FOR_THIS_CPU(depthwise_lanes)(type);
  const bool last = channels_last && p.x.stride.c == 1 && p.y.stride.c == 1;
  if (last && g.c >= lanes.count) return Layout::kChannelsLast;
  const int64_t k = g.kh, pixel = last ? g.c : 1;
  const bool same = g.kw == k && g.ph == k / 2 && g.pw == k / 2 && g.dh == 1 && g.dw == 1 && g.m == 1;
  const bool fits = same && (k == 3 || k == 5) && g.sh == g.sw && p.x.stride.w == pixel && p.y.stride.w == pixel;
  if (last) return fits && g.sh <= std::min(stride, lanes.pixel_stride) ? Layout::kPixels : Layout::kPlanar;
  return fits && g.sh <= stride && type != ScalarType::Double ? Layout::kRows : Layout::kPlanar;
}

// In channels_last, bfloat16 is rounded by the processor's instruction where there is one.
Kernels kernels_for(ScalarType type, const Problem& p) {
  if (type == ScalarType::BFloat16 && p.layout == Layout::kChannelsLast)
    return FASTNETS_FOR_THIS_CPU_AND(BFloat16, channels_last::kernels<BFloat16>)();
  return FASTNETS_FOR_THIS_CPU(depthwise_kernels)(type, p);
}

// Cuts the rows into strips for the kernels of this layout. Depends on shapes only: the weight gradient's sums run over
// strips.
//
// Where channels are neighbours, a strip of all of them fits the second-level cache, and there are more strips where
// images are few, as threads that wrote neighbouring channels would fetch each other's cache lines. Where pixels are
// neighbours, threads take different channels, and strips where those are few; the scratch of one vector of channels
// fits the second-level cache.
void cut_rows(Problem& p, int64_t bytes) {
  const Convolution& g = p.g;
  constexpr int64_t kStrip = 192 << 10, kUnits = 16;
  const int64_t plane = g.h * g.w + g.m * g.oh * g.ow, images = std::max<int64_t>(1, g.n);
  int64_t strips = kUnits / std::max<int64_t>(1, images * (p.layout == Layout::kRows ? g.c : 1));
  if (p.layout == Layout::kChannelsLast) strips = std::max(bytes * g.c * plane / kStrip, kUnits / images);
  if (p.layout == Layout::kPlanar)
    strips = std::max<int64_t>(ceil_div(depthwise::kWidest * sizeof(float) * plane, kStrip),
                               kUnits / (images * ceil_div(g.c, depthwise::kWidest)));
  p.strips = std::clamp<int64_t>(strips, 1, g.oh);
}

// Bytes of x and y.
int64_t moved(const Problem& p, int64_t bytes) {
  const Convolution& g = p.g;
  return bytes * g.n * (g.c * g.h * g.w + g.o * g.oh * g.ow);
}

// Bytes of this machine's third-level cache, where the system says how many.
int64_t third_level() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  static const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return kThirdLevel;
}

// Says how large the arrays are to the kernels that fetch or ask for lines ahead and store past the caches.
void look_at_caches(Problem& p, int64_t bytes, const Tensor& written) {
  constexpr int64_t kSecondLevel = 2 << 20;
  p.claims = moved(p, bytes) > kSecondLevel;
  p.prefetches = moved(p, bytes) > third_level() / 2;  // others' arrays may lie there
  p.streams = bytes * written.numel() > kThirdLevel;
}

int64_t wanted_tasks() { return 2 * torch::stable::get_num_threads(); }

// Into how many pieces the channels of images go forward: there is work for all threads, and of channels last the rows
// under a kernel lie in the first-level cache, as each is read kh times, but not so far that less than five cache lines
// of a pixel are read at a time.
int64_t forward_pieces(const Problem& p, int64_t bytes) {
  constexpr int64_t kFirstLevel = 24 << 10, kLines = 5 * 64;
  const int64_t pieces = ceil_div(wanted_tasks(), p.units()), pixel = bytes * p.g.c;
  if (p.layout != Layout::kChannelsLast) return pieces;
  return std::max(pieces, std::min(pixel / kLines, ceil_div(pixel * p.g.kh * p.g.w, kFirstLevel)));
}

void run(void (*kernel)(const Problem&, int64_t, int64_t), const Problem& p, int64_t tasks) {
  const Convolution& g = p.g;
  const int64_t work = std::max<int64_t>(1, g.n * g.o * g.oh * g.ow * g.kh * g.kw / tasks);  // multiply-adds in a task
  run_step(tasks, std::max<int64_t>(1, (1 << 15) / work), [=](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

using Ints = std::vector<int64_t>;

// The convolution of what stands in front of it in p, if anything does.
Tensor convolve(Problem p, const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, const Ints& stride,
                const Ints& padding, const Ints& dilation, const std::optional<Text>& activation) {
  p.g = depthwise_geometry(x, w, stride, padding, dilation);
  const Convolution& g = p.g;
  p.activation = parse_activation(activation);
  const bool last = is_channels_last(x);
  const Tensor y = result(x, {g.n, g.o, g.oh, g.ow}, last);
  if (y.numel() == 0) return y;
  p.x = operand(x), p.w = operand(w), p.y = operand(y);
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == g.o && bias->scalar_type() == x.scalar_type(),
                    "expected a bias of ", g.o, " numbers of the input's type");
    p.bias = memory(*bias), p.bias_step = bias->stride(0);
  }
  p.layout = layout_of(p, last, x.scalar_type(), 2);
  look_at_caches(p, x.element_size(), y);
  cut_rows(p, x.element_size());
  const Kernels kernels = kernels_for(x.scalar_type(), p);
  cut_channels(p, forward_pieces(p, x.element_size()));
  run(kernels.forward, p, p.chunks() * p.units());
  return y;
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, const Ints& stride,
                        const Ints& padding, const Ints& dilation, const std::optional<Text>& activation) {
  return convolve({}, x, w, bias, stride, padding, dilation, activation);
}

// Adds up partial sums [part][count] in their order, into the first of them.
template <typename A>
void add_up(A* partial, int64_t parts, int64_t count) {
  torch::stable::parallel_for(0, count, (1 << 16) / parts + 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = begin; i < end; ++i) partial[i] += partial[part * count + i];
  });
}

// Partial sums of the gradients of weight and bias: as many as have work enough to be worth their memory. Depends on
// shapes only.
int64_t partial_sums(const Problem& p) {
  constexpr int64_t kPixels = 128, kParts = 32;
  return std::clamp<int64_t>(p.g.n * p.g.oh * p.g.ow / kPixels, 1, std::clamp<int64_t>(p.units(), 1, kParts));
}

// Gradients of weight and bias, and that of the input if it has memory; `sums` (2, c) are those of Norm.
template <typename T>
void backward_weight(Problem p, const Kernels& kernels, const Tensor& dw, const Tensor& db, float* sums = nullptr) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  p.parts = partial_sums(p);
  cut_channels(p, ceil_div(wanted_tasks(), p.parts));
  const std::unique_ptr<A[]> weights(new A[p.parts * dw.numel()]), biases(new A[p.parts * db.numel()]);
  const std::unique_ptr<float[]> products(sums ? new float[p.parts * 2 * p.g.c] : nullptr);
  p.dw = dw.numel() ? weights.get() : nullptr;
  p.db = db.numel() ? biases.get() : nullptr;
  p.norm.sums = products.get();
  run(kernels.backward, p, p.chunks() * p.parts);
  add_up(weights.get(), p.parts, dw.numel());
  add_up(biases.get(), p.parts, db.numel());
  std::transform(weights.get(), weights.get() + dw.numel(), mutable_data<T>(dw), [](A v) { return static_cast<T>(v); });
  std::transform(biases.get(), biases.get() + db.numel(), mutable_data<T>(db), [](A v) { return static_cast<T>(v); });
  if (!sums) return;
  add_up(products.get(), p.parts, 2 * p.g.c);
  std::copy_n(products.get(), 2 * p.g.c, sums);
}

void check_gradient(const Convolution& g, const Tensor& x, const Tensor& dy) {
  STD_TORCH_CHECK(dy.dim() == 4 && dy.size(0) == g.n && dy.size(1) == g.o && dy.size(2) == g.oh && dy.size(3) == g.ow &&
                      dy.scalar_type() == x.scalar_type(),
                  "expected a gradient of the result's shape and type");
}

void backward_input(Problem p, const Kernels& kernels) {
  p.parts = p.units();
  cut_channels(p, ceil_div(wanted_tasks(), p.units()));
  run(kernels.backward, p, p.chunks() * p.units());
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward(const Tensor& dy, const Tensor& x, const Tensor& w,
                                                             const Ints& stride, const Ints& padding,
                                                             const Ints& dilation, bool need_dx, bool need_dw,
                                                             bool need_db) {
  Problem p;
  p.g = depthwise_geometry(x, w, stride, padding, dilation);
  const Convolution& g = p.g;
  check_gradient(g, x, dy);
  const bool last = is_channels_last(x);
  const Tensor dx = need_dx ? empty(x, {g.n, g.c, g.h, g.w}, last) : empty(x, 0);
  const Tensor dw = need_dw ? empty(w, {g.o, 1, g.kh, g.kw}, is_channels_last(w)) : empty(w, 0);
  const Tensor db = empty(w, need_db ? g.o : 0);
  p.x = operand(x), p.w = operand(w), p.y = operand(dy);
  p.layout = layout_of(p, last, x.scalar_type(), 1);
  look_at_caches(p, x.element_size(), dx);
  cut_rows(p, x.element_size());
  const Kernels kernels = kernels_for(x.scalar_type(), p);
  const bool weight = need_dw || need_db;
  // Together they read dy once; not by the kernels of rows, nor if channels had to be cut for the weight's.
  const bool together = weight && !p.by_rows() && partial_sums(p) >= wanted_tasks();
  if (dx.numel() > 0) {
    p.dx = operand(dx);
    if (!together) backward_input(p, kernels), p.dx.data = nullptr;
  }
  if (!weight) return {dx, dw, db};
  if (p.by_rows()) p.layout = Layout::kPlanar, cut_rows(p, x.element_size());
  const Kernels sums = kernels_for(x.scalar_type(), p);
  with_float(x.scalar_type(), [&](auto zero) { backward_weight<decltype(zero)>(p, sums, dw, db); });
  return {dx, dw, db};
}

// Batch normalisation in front of a convolution: the vectors that Norm names.
struct Normalization {
  Normalization(const Tensor& x, const Tensor& mean, const Tensor& var, const std::optional<Tensor>& weight,
                const std::optional<Tensor>& bias, double eps)
      : mean(moments::values_of<float>(x, mean, 0)),
        r(moments::values_of<float>(x, var, 1)),
        scale(moments::values_of<float>(x, weight, 1)),
        shift(moments::values_of<float>(x, bias, 0)) {
    for (size_t c = 0; c < r.size(); ++c) r[c] = 1 / std::sqrt(r[c] + static_cast<float>(eps)), scale[c] *= r[c];
  }

  Norm with(const std::optional<Text>& activation) const {
    return {mean.data(), scale.data(), shift.data(), parse_activation(activation)};
  }

  std::vector<float> mean, r, scale, shift;
};

void check_normalized(const Tensor& x, const Tensor& w) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float && is_channels_last(x) && is_dense(x, true),
                  "expected input in float32 and channels_last, without gaps");
  STD_TORCH_CHECK(x.size(1) >= depthwise::kWidest, "expected at least ", depthwise::kWidest, " channels");
  STD_TORCH_CHECK(w.size(0) == x.size(1), "expected a kernel for each channel");
}

std::tuple<Tensor, Tensor, Tensor> norm_depthwise_conv2d(const Tensor& x, const std::optional<Tensor>& weight,
                                                         const std::optional<Tensor>& bias, const Tensor& w, double eps,
                                                         const std::optional<Text>& activation, const Ints& stride,
                                                         const Ints& padding, const Ints& dilation) {
  check_normalized(x, w);
  const moments::Cut cut(map_of(x), sizeof(float));
  STD_TORCH_CHECK(eps > 0 && cut.map.count() > 1, "expected more than 1 value per channel and a positive eps");
  const Tensor mean = empty_sums(x), var = empty_sums(x);
  float *const means = mutable_data<float>(mean), *const vars = mutable_data<float>(var);
  moments::moments_of<float>(FASTNETS_FOR_THIS_CPU(moments::kernel<float>)(true), cut, memory(x), means, vars);
  for (int64_t c = 0; c < cut.map.c; ++c) vars[c] /= cut.map.count();
  const Normalization normalization(x, mean, var, weight, bias, eps);
  Problem p;
  p.norm = normalization.with(activation);
  return {convolve(p, x, w, std::nullopt, stride, padding, dilation, std::nullopt), mean, var};
}

// The gradient of what the convolution takes, the sums (2, c) of dz and dz * xhat, and dw.
std::tuple<Tensor, Tensor, Tensor> norm_depthwise_conv2d_backward(
    const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const Tensor& w, double eps, const std::optional<Text>& activation,
    const Ints& stride, const Ints& padding, const Ints& dilation) {
  check_normalized(x, w);
  STD_TORCH_CHECK(is_dense(dy, true), "expected a gradient in channels_last, without gaps");
  const Normalization normalization(x, mean, var, weight, bias, eps);
  Problem p;
  p.g = depthwise_geometry(x, w, stride, padding, dilation);
  p.norm = normalization.with(activation);
  check_gradient(p.g, x, dy);
  const Tensor dx = empty(x, {p.g.n, p.g.c, p.g.h, p.g.w}, true), sums = empty_sums(x, 2);
  const Tensor dw = empty(w, {p.g.o, 1, p.g.kh, p.g.kw}, is_channels_last(w));
  p.x = operand(x), p.w = operand(w), p.y = operand(dy), p.dx = operand(dx);
  p.layout = Layout::kChannelsLast;
  look_at_caches(p, x.element_size(), dx);
  cut_rows(p, x.element_size());
  const Kernels kernels = kernels_for(x.scalar_type(), p);
  float* const totals = mutable_data<float>(sums);
  backward_weight<float>(p, kernels, dw, empty(w, 0), totals);
  for (int64_t c = 0; c < p.g.c; ++c) totals[p.g.c + c] *= normalization.r[c];
  return {dx, sums, dw};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&fastnets::depthwise_conv2d));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&fastnets::depthwise_conv2d_backward));
  m.impl("norm_depthwise_conv2d", TORCH_BOX(&fastnets::norm_depthwise_conv2d));
  m.impl("norm_depthwise_conv2d_backward", TORCH_BOX(&fastnets::norm_depthwise_conv2d_backward));
}
