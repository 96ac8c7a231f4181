// Maximum and mean of windows on a CPU: arguments, the cut into tasks, registration. The kernel is in the header.
#include "pool2d.h"

#include <optional>

#define FASTNETS_KERNELS "pool2d_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

using pool::Into;
using pool::Pair;

template <typename T>
Tensor pool(const Tensor& x, const Pair& kernel, const Pair& stride, const Pair& padding, bool ceil_mode, bool mean,
            bool counts_padding, const Into& into, int64_t channel,
            void (*rows)(const pool::Problem<T>&, int64_t, int64_t)) {
  const auto from = pointwise::check_slice<T>(x);
  const Convolution g = pool::windows(sizes_of(x), kernel, stride, padding, ceil_mode);
  const pointwise::Results<T> y(x, {g.n, g.c, g.oh, g.ow}, into, channel);
  const pool::Problem<T> p{g, from, y.pixels, mean, counts_padding};
  const int64_t tasks = g.n * g.oh, row = g.ow * g.c * g.kh * g.kw;
  if (tasks * row > 0)
    pointwise::run(tasks, tasks * row, [p, rows](int64_t begin, int64_t end) { rows(p, begin, end); });
  return y.images;
}

Tensor pool(const Tensor& x, const Pair& kernel, const Pair& stride, const Pair& padding, bool ceil_mode, bool mean,
            bool counts_padding, const Into& into, int64_t channel) {
  if (!mean && x.scalar_type() == ScalarType::Byte)
    return pool<uint8_t>(x, kernel, stride, padding, ceil_mode, mean, counts_padding, into, channel,
                         FASTNETS_FOR_THIS_CPU(pool::rows<uint8_t>));
  return pointwise::with_type(x, [&](auto type) {
    using T = decltype(type);
    return pool<T>(x, kernel, stride, padding, ceil_mode, mean, counts_padding, into, channel,
                   FASTNETS_FOR_THIS_CPU_AND(T, pool::rows<T>));
  });
}

// Of x in channels_last, which may be bytes.
Tensor max_pool2d(const Tensor& x, const Pair& kernel, const Pair& stride, const Pair& padding, bool ceil_mode,
                  const Into& into, int64_t channel) {
  return pool(x, kernel, stride, padding, ceil_mode, false, false, into, channel);
}

Tensor avg_pool2d(const Tensor& x, const Pair& kernel, const Pair& stride, const Pair& padding, bool ceil_mode,
                  bool count_include_pad, const Into& into, int64_t channel) {
  return pool(x, kernel, stride, padding, ceil_mode, true, count_include_pad, into, channel);
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&fastnets::max_pool2d));
  m.impl("avg_pool2d", TORCH_BOX(&fastnets::avg_pool2d));
}
