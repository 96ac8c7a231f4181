// Channel shuffle on a CPU: arguments and registration. The copy itself is in strided_copy.cpp.
#include "../channel_shuffle.h"

#include <tuple>

#include "steps.h"
#include "strided_copy.h"

namespace fastnets {
namespace {

Tensor channel_shuffle(const Tensor& x, int64_t groups) {
  check_channel_shuffle(x, groups);
  const Tensor y = result(x, sizes_of(x), is_channels_last(x));
  if (y.numel() > 0) run(channel_shuffle_copy(x, y, groups));
  return y;
}

std::tuple<Tensor, Tensor> shuffle_split(const Tensor& a, const Tensor& b, bool inverse) {
  check_shuffle_split(a, b);
  const bool last = is_channels_last(a);  // so are both results
  const Tensor first = result(a, sizes_of(a), last);
  const Pair y{first, result(a, sizes_of(a), last)};
  if (a.numel() > 0)
    for (const StridedCopy& copy : shuffle_split_copies({a, b}, y, inverse)) run(copy);
  return {y.first, y.second};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("channel_shuffle", TORCH_BOX(&fastnets::channel_shuffle));
  m.impl("shuffle_split", TORCH_BOX(&fastnets::shuffle_split));
}
