// The end of a classifier on a CPU, global average pooling and a linear layer: arguments, cut into tasks, registration.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "pointwise_conv2d.h"

#define FASTNETS_KERNELS "pooled_linear_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

// Of x (n, c, h, w) in channels_last and weights in panels, of which there are `out` results: (n, out).
Tensor pooled_linear(const Tensor& x, const Tensor& panels, int64_t out, const std::optional<Tensor>& bias) {
  using namespace pointwise;
  check_images(x);
  const Four s = sizes_of(x);
  STD_TORCH_CHECK(s.h * s.w > 0, "expected images of at least one pixel");
  check_panels(panels, s.c, out);
  const Tensor means = empty(x, s.n * s.c), y = empty_strided(x, {s.n, out}, {out, 1}, dtype_of(x));
  Problem p;
  p.x = {data<float>(means), s.c}, p.y = {mutable_data<float>(y), out};
  p.w = data<float>(panels), p.bias = check_bias(bias, out), p.in = s.c, p.out = out;
  if (y.numel() == 0) return y;
  constexpr int64_t kTask = 1 << 15;  // numbers, or multiply-adds, that are worth a thread
  torch::stable::parallel_for(0, FASTNETS_FOR_THIS_CPU(pooled::tasks)(s.n, s.c),
                              std::max<int64_t>(1, kTask / (s.h * s.w * kPanel)),
                              [&, kernel = FASTNETS_FOR_THIS_CPU(pooled::means)](int64_t begin, int64_t end) {
                                kernel(data<float>(x), s.h * s.w, s.c, mutable_data<float>(means), begin, end);
                              });
  const Tasks tasks = tasks_of(p, s.n);
  torch::stable::parallel_for(0, tasks.count(),
                              std::max<int64_t>(1, kTask / (std::min(tasks.block, s.n) * p.in * kPanel)),
                              [&, kernel = FASTNETS_FOR_THIS_CPU(pooled::product)](int64_t begin, int64_t end) {
                                kernel(p, tasks, begin, end);
                              });
  return y;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("pooled_linear", TORCH_BOX(&fastnets::pooled_linear)); }
