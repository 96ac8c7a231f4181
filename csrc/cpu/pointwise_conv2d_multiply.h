// The product of pointwise_conv2d_tile.h as other kernels call it: pointwise_conv2d.cpp alone compiles it. Included by
// isa.h: no guard.
#include "activate.h"

namespace fastnets::FASTNETS_ISA::pointwise {

using fastnets::pointwise::kPanel;
using fastnets::pointwise::ProblemOf;

constexpr int L = kLanes<float>;

// A panel of results of some pixels.
template <typename X, typename Y>
void multiply(const ProblemOf<X, Y>& p, Range pixels, int64_t panel);

// Panels of results of blocks of pixels; blocks that follow one another are one.
template <typename X, typename Y>
void multiply_tasks(const ProblemOf<X, Y>& p, const fastnets::pointwise::Tasks& tasks, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end;) {
    const int64_t panel = tasks.panel(task);
    multiply(p, tasks.merged(task, end), panel);
  }
}

}  // namespace fastnets::FASTNETS_ISA::pointwise
