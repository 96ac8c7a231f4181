// Corner pooling on a CPU: arguments, the cut into tasks, registration. The kernels are in the headers.
#include "corner_pool.h"

#include <algorithm>
#include <vector>

#define FASTNETS_KERNELS "corner_pool_kernels.h"
#include "dense.h"
#include "isa.h"

namespace fastnets {
namespace {

using corner::Pass;
using corner::Problem;

// Cuts `count` things of each image into pieces of a multiple of `unit`, at most `most`, so that threads are busy.
int64_t cut(int64_t count, int64_t unit, int64_t most, int64_t images) {
  const int64_t wanted = ceil_div(2 * torch::stable::get_num_threads(), std::max<int64_t>(1, images));
  const int64_t pieces = std::max(ceil_div(count, most), std::min(wanted, ceil_div(count, unit)));
  return ceil_div(ceil_div(count, pieces), unit) * unit;
}

// A result like x, and what to compute it from. Any cut into tasks gives the same bits.
Tensor run(Problem p, Pass pass, const Tensor& x, bool last, bool one_lane) {
  const Tensor y = empty(x, sizes_of(x), last);
  if (y.numel() == 0) return y;
  p.out = mutable_memory(y);
  // Lanes: cache lines, and running maxima within the first-level cache. Rows: blocks of the widest vector.
  constexpr int64_t kLine = 64, kMost = 2048, kBlock = 16, kRows = 64;
  if (!one_lane)
    p.chunk = cut(p.lanes, kLine, pass == Pass::kForward ? kMost : kMost / 4, p.images);
  else
    p.chunk = pass == Pass::kSum ? p.rows / p.images : cut(p.rows, kBlock, kRows, 1);
  constexpr int64_t kTask = 1 << 15;
  p.streams = y.numel() * static_cast<int64_t>(y.element_size()) > kThirdLevel;
  const int64_t tasks = one_lane ? ceil_div(p.rows, p.chunk) : p.images * p.chunks();
  const corner::Kernel kernel = FASTNETS_FOR_THIS_CPU(corner_pool_kernel)(x.scalar_type(), one_lane, p.reverse, pass);
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kTask * tasks / y.numel()),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return y;
}

// How the scan of a dense tensor sees it (see Problem); whether it does so as one lane.
bool view(Problem& p, const Four& s, bool vertical, bool last) {
  if (vertical) {
    p.images = last ? s.n : s.n * s.c, p.rows = s.h, p.lanes = last ? s.w * s.c : s.w;
    return false;
  }
  if (last) {
    p.images = s.n * s.h, p.rows = s.w, p.lanes = s.c;
    return false;
  }
  p.rows = s.n * s.c * s.h, p.columns = s.w;
  return true;
}

Tensor corner_pool(const Tensor& x, const Text& direction, const Text& tie) {
  const Direction d = parse_direction(direction);
  takes_first(tie);
  check_image_batch(x);
  const bool last = is_channels_last(x);
  const Tensor from = dense(x, last);
  Problem p;
  p.reverse = d.reverse;
  p.vertical = p.horizontal = memory(from);
  const bool one_lane = view(p, sizes_of(x), d.vertical, last);
  return run(p, Pass::kForward, x, last, one_lane);
}

Tensor corner_pool_backward(const Tensor& dy, const Tensor& x, const Text& direction, const Text& tie) {
  const Direction d = parse_direction(direction);
  check_image_batch(x);
  check_alike(x, dy);
  const bool last = is_channels_last(x);
  const Tensor from = dense(x, last), gradient = dense(dy, last);
  Problem p;
  p.reverse = d.reverse;
  p.vertical = p.horizontal = memory(from);
  p.dy = memory(gradient);
  const bool one_lane = view(p, sizes_of(x), d.vertical, last);
  return run(p, takes_first(tie) ? Pass::kBackwardFirst : Pass::kBackwardLast, x, last, one_lane);
}

Tensor corner_pool_sum(const Tensor& vertical, const Tensor& horizontal, const Text& corner) {
  Problem p;
  p.reverse = parse_corner(corner);
  check_image_batch(vertical);
  check_alike(vertical, horizontal);
  STD_TORCH_CHECK(vertical.scalar_type() != ScalarType::Bool, "bools cannot be added");
  const bool last = is_channels_last(vertical);
  const Tensor v = dense(vertical, last), h = dense(horizontal, last);
  p.vertical = memory(v);
  p.horizontal = memory(h);
  const Four s = sizes_of(vertical);
  p.images = last ? s.n : s.n * s.c, p.rows = last ? s.h : s.n * s.c * s.h, p.columns = s.w, p.lanes = last ? s.c : 1;
  return run(p, Pass::kSum, vertical, last, !last);
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("corner_pool", TORCH_BOX(&fastnets::corner_pool));
  m.impl("corner_pool_backward", TORCH_BOX(&fastnets::corner_pool_backward));
  m.impl("corner_pool_sum", TORCH_BOX(&fastnets::corner_pool_sum));
}
