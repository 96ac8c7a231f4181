// Strip pooling on a CPU: arguments, the cut into tasks, registration. The kernels are in the header.
#include "strip_pool.h"

#include <algorithm>
#include <tuple>

#define FASTNETS_KERNELS "strip_pool_kernels.h"
#include "dense.h"
#include "isa.h"

namespace fastnets {
namespace {

using strip::Problem;

Problem problem(const Four& s, bool last) {
  Problem p;
  p.images = last ? s.n : s.n * s.c, p.height = s.h, p.width = s.w, p.lanes = last ? s.c : 1;
  return p;
}

// Cuts each image into chunks of a multiple of `unit` of its `count` lanes or rows, so that threads are busy. No sum
// runs over two of them.
void cut(Problem& p, int64_t count, int64_t unit) {
  const int64_t wanted = ceil_div(2 * torch::stable::get_num_threads(), std::max<int64_t>(1, p.images));
  p.chunk = ceil_div(ceil_div(count, wanted), unit) * unit;
  p.chunks = ceil_div(count, std::max<int64_t>(1, p.chunk));
}

void run(const Problem& p, ScalarType type, bool last, bool is_backward) {
  constexpr int64_t kTask = 1 << 15;
  const int64_t tasks = p.images * p.chunks, work = p.images * p.height * p.width * p.lanes;
  const strip::Kernel kernel = FASTNETS_FOR_THIS_CPU(strip_pool_kernel)(type, last, is_backward);
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
  constexpr int64_t kLine = 64;
  if (last) cut(p, s.c, kLine / static_cast<int64_t>(x.element_size()));
  p.x = const_cast<void*>(from.const_data_ptr());
  p.rows = rows.mutable_data_ptr(), p.columns = columns.mutable_data_ptr();
  run(p, x.scalar_type(), last, false);
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
  constexpr int64_t kThirdLevel = 16 << 20;
  p.streams = dx.numel() * static_cast<int64_t>(dx.element_size()) > kThirdLevel;
  p.x = dx.mutable_data_ptr();
  p.rows = const_cast<void*>(from_rows.const_data_ptr()), p.columns = const_cast<void*>(from_columns.const_data_ptr());
  run(p, drows.scalar_type(), channels_last, true);
  return dx;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("strip_pool", TORCH_BOX(&fastnets::strip_pool));
  m.impl("strip_pool_backward", TORCH_BOX(&fastnets::strip_pool_backward));
}
