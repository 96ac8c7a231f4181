// Grouped convolution on a CPU: arguments, the cut into tasks, registration. The kernels are in the headers.
#include "grouped_conv2d.h"

#include <torch/csrc/stable/ops.h>

#include <memory>
#include <tuple>

#define FASTNETS_KERNELS "grouped_conv2d_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

using grouped::Axis;
using grouped::backward_axis;
using grouped::forward_axis;
using grouped::Kernels;
using grouped::Problem;

Problem forward_problem(const Convolution& g, const Tensor& x, const Tensor& w, const Tensor& y) {
  Problem p{g.n,
            g.groups,
            g.depth,
            g.m,
            g.kh,
            g.kw,
            forward_axis(g.oh, g.h, g.kh, g.sh, g.ph, g.dh),
            forward_axis(g.ow, g.w, g.kw, g.sw, g.pw, g.dw),
            operand(x),
            operand(y)};
  p.w = memory(w), p.w_stride = strides_of(w), p.w_group = g.m * p.w_stride.n;
  return p;
}

Problem backward_problem(const Convolution& g, const Tensor& dy, const Tensor& w, const Tensor& dx) {
  Problem p{g.n,
            g.groups,
            g.m,
            g.depth,
            g.kh,
            g.kw,
            backward_axis(g.h, g.oh, g.kh, g.sh, g.ph, g.dh),
            backward_axis(g.w, g.ow, g.kw, g.sw, g.pw, g.dw),
            operand(dy),
            operand(dx)};
  p.w = memory(w), p.w_stride = strides_of(w), p.w_group = g.m * p.w_stride.n;
  std::swap(p.w_stride.n, p.w_stride.c);
  return p;
}

// Whether groups are so narrow that a vector holds several.
bool shares_vectors(const Problem& p, const Kernels& kernels) {
  return kernels.permutes && 2 * p.out <= kernels.lanes && p.in <= p.out;
}

constexpr int64_t kTasks = 16;  // for many threads

// Rows of results of so many units, whose source is copied to at most `most` bytes.
int64_t fitting_rows(const Problem& p, const Kernels& kernels, int64_t bytes, int64_t units, int64_t most) {
  const int64_t unit = ceil_div(p.unit_in(), kernels.lanes) * kernels.lanes;
  const int64_t row = bytes * p.columns.span(p.columns.count()) * units * unit;
  return (most / row - (p.rows.last - p.rows.first)) / p.rows.source_step;
}

// Strips of at most so many rows of results.
int64_t strips_of(const Problem& p, int64_t most) {
  constexpr int64_t kRows = 4;
  const int64_t rows = p.rows.count(), tasks = std::max<int64_t>(1, p.n * p.chunks());
  return std::max(ceil_div(rows, most), std::min(ceil_div(kTasks, tasks), ceil_div(rows, kRows)));
}

// Units of groups, and strips of rows. Strips that share rows are tall, as far as their copy fits the second-level
// cache; a task then has about 64 channels, so that threads still write different cache lines. Strips that share none
// take all channels, in the order of memory, and so few rows that source and result stay cached from unit to unit.
// Depends on shapes only: the weight gradient's sums run over strips.
void cut(Problem& p, const Kernels& kernels, int64_t bytes) {
  constexpr int64_t kChannels = 64, kTallStrip = 192 << 10, kFlatStrip = 48 << 10;
  if (shares_vectors(p, kernels)) p.together = std::min(kernels.lanes / p.out, p.groups);
  const int64_t rows = p.rows.count();
  if (p.rows.last > p.rows.first) {
    p.chunk = std::clamp<int64_t>(kChannels / std::max(p.unit_in(), p.unit_out()), 1, p.units());
    p.strips = strips_of(p, std::max<int64_t>(1, fitting_rows(p, kernels, bytes, p.chunk, kTallStrip)));
  } else {
    const int64_t columns = p.columns.span(p.columns.count());
    p.chunk = p.units();
    const int64_t row = bytes * p.groups * (p.in * columns * p.rows.source_step + p.out * p.columns.size);
    p.strips = std::max(ceil_div(rows * row, kFlatStrip), ceil_div(kTasks, std::max<int64_t>(1, p.n)));
  }
  p.strips = std::clamp<int64_t>(p.strips, 1, rows);
}

// Strips that share rows with all channels instead, in the order of memory, which hardware then fetches ahead: where
// channels are neighbours, two rows of results fit, and weights are so few that each thread may as well pack them all.
void cut_wide(Problem& p, const Kernels& kernels) {
  constexpr int64_t kWideStrip = 400 << 10, kMore = 16;
  const int64_t fitting = fitting_rows(p, kernels, sizeof(float), p.units(), kWideStrip);
  const int64_t weights = p.groups * p.out * p.in * p.taps();
  const int64_t source = p.n * p.groups * p.in * p.rows.source * p.columns.source;
  const bool shares_rows = p.rows.last > p.rows.first, neighbours = p.source.stride.c == 1;
  if (!shares_rows || !neighbours || fitting < 2 || kMore * weights > source) return;
  p.chunk = p.units();
  p.strips = std::clamp<int64_t>(strips_of(p, fitting), 1, p.rows.count());
}

// Calls kernel(begin, end) on ranges of tasks, of a size worth a thread.
template <typename F>
void run(const Problem& p, int64_t tasks, const F& kernel) {
  const int64_t results = p.n * p.groups * p.out * p.rows.size * p.columns.size;
  const int64_t work = std::max<int64_t>(1, results * p.in * p.taps() / tasks);  // multiply-adds in a task
  run_step(tasks, std::max<int64_t>(1, (1 << 17) / work), kernel);
}

// Whether this is a product of matrices for each group.
bool is_product(const Convolution& g, const Problem& p, const Tensor& source, const Tensor& result, const Kernels& k) {
  return k.multiply && g.kh * g.kw * g.sh * g.sw == 1 && g.ph + g.pw == 0 && is_dense(source, true) &&
         is_dense(result, true) && !shares_vectors(p, k) && p.bias_step == 1;
}

// How many results of each group are left to dots: the last, where as lanes they would leave most of a vector empty,
// and where lanes of source channels are full.
int64_t dots_of(const Problem& p, const Kernels& kernels) {
  const int64_t lanes = kernels.lanes, rest = p.out % lanes;
  return 4 * rest <= lanes && p.out > lanes && p.in >= 2 * lanes && p.w_stride.c == 1 ? rest : 0;
}

void multiply(const Problem& p, const Kernels& kernels) {
  constexpr int64_t kNear = 1 << 20;  // bytes that a second-level cache may have of it
  const int64_t pixels = p.n * p.rows.size * p.columns.size;
  pointwise::Problem first;
  first.x = {static_cast<const float*>(p.source.data), p.groups * p.in}, first.in = p.in;
  const int64_t dots = dots_of(p, kernels);
  first.y = {static_cast<float*>(p.result.data), p.groups * p.out}, first.out = p.out - dots;
  first.fetches = pixels * p.groups * p.out * static_cast<int64_t>(sizeof(float)) > kNear;
  first.bias = static_cast<const float*>(p.bias), first.activation = p.activation;
  pointwise::Tasks tasks = pointwise::tasks_of(first, pixels, p.groups);
  if (dots > 0) tasks.panels += p.groups;  // one more for each
  pointwise::run(tasks.count(), pixels * p.groups * p.in * p.out,
                 [=](int64_t begin, int64_t end) { kernels.multiply(p, first, tasks, begin, end); });
}

// Those for this processor and a type.
Kernels kernels_for(ScalarType type) {
  Kernels kernels = FASTNETS_FOR_THIS_CPU(grouped_kernels)(type);
  if (type == ScalarType::BFloat16 && has_bfloat16())
    kernels.correlate_pairs = FASTNETS_FOR_THIS_CPU_AND(BFloat16, grouped::correlate<BFloat16>);
  return kernels;
}

// Whether source channels can go by pairs: those that are neighbours have to begin at whole ones.
bool pairs_up(const Problem& p, const Kernels& kernels) {
  if (!kernels.correlate_pairs || p.in % 2 != 0) return false;
  const auto whole = [](const void* data, const Four& s, int64_t rows, int64_t columns) {
    const int64_t odd = s.n | (rows > 1 ? s.h : 0) | (columns > 1 ? s.w : 0);
    return reinterpret_cast<uintptr_t>(data) % 4 == 0 && odd % 2 == 0;
  };
  const Operand& x = p.source;
  if (x.stride.c == 1 ? !whole(x.data, x.stride, p.rows.source, p.columns.source) : x.stride.w != 1) return false;
  return p.w_stride.c != 1 || (whole(p.w, p.w_stride, p.kh, p.kw) && p.w_group % 2 == 0);
}

void correlate(const Convolution& g, Problem p, const Kernels& kernels, const Tensor& source, const Tensor& result) {
  if (is_product(g, p, source, result, kernels)) return multiply(p, kernels);
  const bool pairs = pairs_up(p, kernels);
  if (pairs) p.in /= 2;
  cut(p, kernels, source.element_size());
  cut_wide(p, kernels);
  run(p, p.chunks() * p.n * p.strips,
      [=](int64_t begin, int64_t end) { (pairs ? kernels.correlate_pairs : kernels.correlate)(p, begin, end); });
}

Tensor grouped_conv2d(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, int64_t groups, const std::optional<Text>& activation) {
  const Convolution g = geometry(x, w, stride, padding, dilation, groups);
  const Tensor y = result(x, {g.n, g.o, g.oh, g.ow}, is_channels_last(x));
  const Activation f = parse_activation(activation);
  const Kernels kernels = kernels_for(x.scalar_type());
  if (y.numel() == 0) return y;
  Problem p = forward_problem(g, x, w, y);
  p.activation = f;
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == g.o && bias->scalar_type() == x.scalar_type(),
                    "expected a bias of ", g.o, " numbers of the input's type");
    p.bias = memory(*bias), p.bias_step = bias->stride(0);
  }
  correlate(g, p, kernels, x, y);
  return y;
}

// Gradients of weight and bias: partial sums over some strips each, added up in their order.
template <typename T>
void weight_gradient(Problem p, const Kernels& kernels, const Tensor& dw, const Tensor& db) {
  using A = Sum<T>;
  p.weighs = dw.numel() > 0;
  cut(p, kernels, sizeof(A));
  p.parts = std::clamp<int64_t>(ceil_div(kTasks, p.chunks()), 1, std::max<int64_t>(1, p.n * p.strips));
  const int64_t lanes = kernels.lanes, rows = p.pairs() + 1;
  const int64_t slot = ceil_div(p.unit_out(), lanes) * rows * lanes, count = p.units() * slot;
  const std::unique_ptr<A[]> partial(new A[p.parts * count]);
  run(p, p.chunks() * p.parts,
      [&](int64_t begin, int64_t end) { kernels.weight_gradient(p, partial.get(), begin, end); });
  T* const weight = p.weighs ? mutable_data<T>(dw) : nullptr;
  T* const biases = db.numel() ? mutable_data<T>(db) : nullptr;
  const Four s = p.weighs ? strides_of(dw) : Four{};
  torch::stable::parallel_for(0, p.units(), 1 + (1 << 14) / (slot * p.parts), [&](int64_t begin, int64_t end) {
    A* const sums = partial.get();
    for (int64_t part = 1; part < p.parts; ++part)
      for (int64_t i = begin * slot; i < end * slot; ++i) sums[i] += sums[part * count + i];
    for (int64_t o = begin * p.unit_out(); o < std::min(end * p.unit_out(), p.groups * p.out); ++o) {
      const int64_t c = o % p.unit_out();
      const A* from = sums + o / p.unit_out() * slot + c / lanes * rows * lanes + c % lanes;
      for (int64_t k = 0; p.weighs && k < p.in; ++k)
        for (int64_t t = 0; t < p.taps(); ++t, from += lanes)
          weight[o * s.n + k * s.c + t / p.kw * s.h + t % p.kw * s.w] = static_cast<T>(*from);
      if (biases) biases[o] = static_cast<T>(*from);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> grouped_conv2d_backward(const Tensor& dy, const Tensor& x, const Tensor& w,
                                                           const std::vector<int64_t>& stride,
                                                           const std::vector<int64_t>& padding,
                                                           const std::vector<int64_t>& dilation, int64_t groups,
                                                           bool need_dx, bool need_dw, bool need_db) {
  const Convolution g = geometry(x, w, stride, padding, dilation, groups);
  STD_TORCH_CHECK(dy.dim() == 4 && dy.size(0) == g.n && dy.size(1) == g.o && dy.size(2) == g.oh && dy.size(3) == g.ow &&
                      dy.scalar_type() == x.scalar_type(),
                  "expected a gradient of the result's shape and type");
  const Tensor dx = need_dx ? empty(x, sizes_of(x), is_channels_last(x)) : empty(x, 0);
  const Tensor dw = need_dw ? empty(w, sizes_of(w), is_channels_last(w)) : empty(w, 0);
  const Tensor db = empty(w, need_db ? g.o : 0);
  const Kernels kernels = kernels_for(x.scalar_type());
  if (dx.numel() > 0) correlate(g, backward_problem(g, dy, w, dx), kernels, dy, dx);
  if (need_dw || need_db)
    with_float(x.scalar_type(),
               [&](auto zero) { weight_gradient<decltype(zero)>(forward_problem(g, x, w, dy), kernels, dw, db); });
  return {dx, dw, db};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("grouped_conv2d", TORCH_BOX(&fastnets::grouped_conv2d));
  m.impl("grouped_conv2d_backward", TORCH_BOX(&fastnets::grouped_conv2d_backward));
}
