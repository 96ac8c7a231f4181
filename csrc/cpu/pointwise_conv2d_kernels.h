// The kernel of a pointwise convolution by itself. Included by isa.h: no guard.
#include "pointwise_conv2d_tile.h"

namespace fastnets::FASTNETS_ISA::pointwise {

inline void forward(const Problem& p, const fastnets::pointwise::Tasks& tasks, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) multiply(p, tasks.range(task), tasks.panel(task));
}

}  // namespace fastnets::FASTNETS_ISA::pointwise
