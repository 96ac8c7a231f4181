// Strip pooling on a CPU: arguments, the cut into tasks, registration. The kernels are in the header.
#include "strip_pool.h"

#include <algorithm>
#include <tuple>

#define FASTNETS_KERNELS "strip_pool_kernels.h"
#include "dense.h"
#include "isa.h"

namespace fastnets {
namespace {

using strip::Pass;
using strip::Problem;

Problem problem(const Four& s, bool last) {
  Problem p;
  p.images = last ? s.n : s.n * s.c, p.height = s.h, p.width = s.w, p.lanes = last ? s.c : 1;
  p.pitch = p.width * p.lanes;
  return p;
}

// Cuts what each image (or part of one) has of lanes or rows, `count`, into chunks of a multiple of `unit`, so that
// threads are busy. No sum runs over two of them.
void cut(Problem& p, int64_t count, int64_t unit) {
  const int64_t wanted = ceil_div(2 * torch::stable::get_num_threads(), std::max<int64_t>(1, p.images * p.parts));
  p.chunk = ceil_div(ceil_div(count, wanted), unit) * unit;
  p.chunks = ceil_div(count, std::max<int64_t>(1, p.chunk));
}

// Cuts the rows of an image: into 32 tasks at most, of 16 rows at least, as many sums take memory; and of 256 rows at
// most, of which a column adds up 64 fours, as more lose digits.
int64_t parts_of(const Problem& p) {
  constexpr int64_t kTasks = 32, kLeast = 16, kMost = 256;
  const int64_t least = std::max<int64_t>(1, ceil_div(p.height, kMost));
  return std::clamp(kTasks / std::max<int64_t>(1, p.images), least, std::max(least, p.height / kLeast));
}

void run(const Problem& p, ScalarType type, bool last, Pass pass) {
  constexpr int64_t kTask = 1 << 15;
  const int64_t tasks = pass == Pass::merge ? p.images * p.width : p.images * p.parts * p.chunks;
  const int64_t work = p.images * p.height * p.width * p.lanes;
  const strip::Kernel kernel = FASTNETS_FOR_THIS_CPU(strip_pool_kernel)(type, last, pass);
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kTask * tasks / std::max<int64_t>(1, work)),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

std::tuple<Tensor, Tensor> strip_pool(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "expected x (n, c, h, w)");
  const bool last = is_channels_last(x);
  const Four s = sizes_of(x);
  const Tensor from = dense(x, last), rows = empty(x, {s.n, s.c, s.h, 1}, last);
  const Tensor columns = empty(x, {s.n, s.c, 1, s.w}, last);
  Problem p = problem(s, last);
  constexpr int64_t kLine = 64, kLanes = 16;
  p.x = const_cast<void*>(memory(from));
  p.rows = mutable_memory(rows), p.columns = mutable_memory(columns);
  if (!last) return run(p, x.scalar_type(), last, Pass::forward), std::tuple{rows, columns};
  p.parts = parts_of(p);
  // Channels that are no whole vectors stay together, as the kernel takes several pixels of them at once.
  cut(p, s.c, s.c % kLanes == 0 ? kLine / static_cast<int64_t>(x.element_size()) : s.c);
  const Tensor sums = empty_strided(x, {p.images * p.parts * p.width * p.lanes}, {1}, sum_dtype(x));
  p.sums = mutable_memory(sums);
  run(p, x.scalar_type(), last, Pass::forward);
  run(p, x.scalar_type(), last, Pass::merge);
  return {rows, columns};
}

Tensor strip_pool_backward(const Tensor& drows, const Tensor& dcolumns, bool channels_last) {
  STD_TORCH_CHECK(drows.dim() == 4 && dcolumns.dim() == 4, "expected gradients of four dimensions");
  const Four s{drows.size(0), drows.size(1), drows.size(2), dcolumns.size(3)};
  STD_TORCH_CHECK(drows.size(3) == 1 && dcolumns.size(2) == 1 && dcolumns.size(0) == s.n && dcolumns.size(1) == s.c &&
                      drows.scalar_type() == dcolumns.scalar_type(),
                  "expected gradients (n, c, h, 1) and (n, c, 1, w) of one type");
  const Tensor from_rows = dense(drows, channels_last), from_columns = dense(dcolumns, channels_last);
  const Tensor dx = empty(drows, s, channels_last);
  if (dx.numel() == 0) return dx;
  Problem p = problem(s, channels_last);
  cut(p, s.h, 1);
  p.streams = dx.numel() * static_cast<int64_t>(dx.element_size()) > kThirdLevel;
  p.x = mutable_memory(dx);
  p.rows = const_cast<void*>(memory(from_rows)), p.columns = const_cast<void*>(memory(from_columns));
  run(p, drows.scalar_type(), channels_last, Pass::backward);
  return dx;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("strip_pool", TORCH_BOX(&fastnets::strip_pool));
  m.impl("strip_pool_backward", TORCH_BOX(&fastnets::strip_pool_backward));
}
